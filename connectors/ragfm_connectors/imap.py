"""Emails in the folders of an IMAP server, and their attachments."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from imapclient import IMAPClient, SocketTimeout
from imapclient.exceptions import IMAPClientAbortError, IMAPClientError, LoginError

from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.core.identities import Identities
from ragfm.core.types import Blob, Ref
from ragfm.parsing.own.web.mail_message import find_attachments, is_encrypted, parse_message
from ragfm_connectors.mail import attachment_names, mail_blob, message_id
from ragfm_connectors.patterns import PathFilter
from ragfm_connectors.records import as_path
from ragfm_connectors.secrets import check_no_secret, check_variable, expand, hide

_Groups: TypeAlias = tuple[str, ...] | None
_T = TypeVar("_T")
_DESCRIPTION = ["RFC822.SIZE", "BODYSTRUCTURE", "BODY.PEEK[HEADER.FIELDS (MESSAGE-ID DATE FROM SUBJECT)]"]
_BATCH = 500  # messages described by one command
_RETRIES = 3
_TEMPORARY = re.compile(r"\[(?:UNAVAILABLE|INUSE|LIMIT|THROTTLED|SERVERBUG|OVERQUOTA)\]|too many", re.IGNORECASE)
_PERMANENT = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
_LEFT_OUT = {rb"\Trash": "deleted emails", rb"\Junk": "junk", rb"\Drafts": "drafts"}


class _Message(NamedTuple):
    """What the server says about a message, which never changes. `names` are those of its attachments."""

    uid: int
    path: str
    revision: str
    size: int
    names: list[str]
    encrypted: bool
    problem: str


@dataclass(slots=True)
class _Listed:
    """A message of the listing, and who may see it; `error` says why that is not known."""

    folder: str
    validity: int
    message: _Message
    allow: _Groups
    error: str


class ImapConnector:
    r"""All emails of an account, or below one of its folders, at `imaps://USER:${PASSWORD}@HOST/FOLDER`.

    Documents are those of the connector `mail`: the path of an email is its Message-ID, that of an attachment
    `<Message-ID>/<file name>`. An email in several folders is one document, wherever it moves; a different email with
    the same Message-ID has a part of its revision in its path. The revision is a hash of size, structure and headers,
    which the server knows. `cache` is a folder for what it has said: a folder of the account whose UIDVALIDITY,
    UIDNEXT and HIGHESTMODSEQ are the same then costs one command, and in any other one only new emails are described.

    `token` is an OAuth 2.0 access token, such as `${MAIL_TOKEN}`, to use instead of a password. `imap://` uses
    STARTTLS, except for this machine. `include` and `exclude` are patterns for folders; those that the server marks as
    \Trash, \Junk and \Drafts are left out unless `include` selects them. Nothing is changed on the server. With
    `identities`, the path of a mapping file (`ragfm.core.identities`), an email is visible to those who may read one of
    its folders by the folder's ACL (RFC 4314).
    """

    def __init__(
        self,
        location: str,
        *,
        token: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        cache: str | None = None,
        identities: str | None = None,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for an invalid address, and for a secret that is not an environment variable."""
        check_no_secret(location)
        if token is not None:
            check_variable("token", token)
        parts = urlsplit(location)
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        if parts.scheme not in ("imap", "imaps") or not parts.hostname or not user or not (password or token):
            raise ConfigError(
                f"{parts.scheme}://…@{parts.hostname or ''} is not the address of a mailbox.",
                "Write imaps://USER:${PASSWORD}@HOST, with %40 for the @ of a user name; or set the option token.",
            )
        self._host, self._port, self._tls = parts.hostname, parts.port, parts.scheme == "imaps"
        self._user, self._password, self._token = unquote(user), unquote(password), token
        self._secrets = (location, token or "")
        self._folder = unquote(parts.path).strip("/")
        self.root = f"{parts.scheme}://{user}@{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        """The address, without the password."""
        self._paths = PathFilter(include, exclude)
        self._cache = Path(cache) if cache is not None else None
        self.identities = Identities(identities) if identities is not None else None
        """The groups that the server's identifiers stand for; None if its ACLs do not matter."""
        self._max_bytes = max_bytes
        self._client: IMAPClient | None = None
        self._selected: tuple[str, int] | None = None  # folder and UIDVALIDITY
        self._listed: dict[str, _Listed] = {}  # by path
        self._last_mail: tuple[str, EmailMessage] | None = None  # attachments are fetched after their mail
        self.sleep: Callable[[float], None] = time.sleep

    def refs(self) -> Iterator[Ref]:
        """All emails and attachments. Raises SourceError if the server cannot be reached or refuses the user."""
        self._listed, problems = {}, []
        for folder, path, flags in self._run(self._folders, SourceError):
            reason = next((_LEFT_OUT[flag] for flag in flags if flag in _LEFT_OUT), None)
            if reason and self._paths.includes(path) and not self._paths.selects(path):
                hint = f"a folder of {reason}; to ingest it, select it with --include"
                yield Ref(f"#folders/{as_path(path)}", skip=hint)
            elif self._paths.includes(path):
                try:
                    self._list_folder(folder)
                except ConnectorError as error:
                    problems.append(f"{path}: {error.message}")
        for path, listed in self._listed.items():
            message = listed.message
            if message.size > self._max_bytes:
                yield Ref(path, skip=f"{message.size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
            elif message.encrypted:
                yield Ref(path, skip="it is encrypted")
            else:
                problem = message.problem or listed.error or None
                for name in ("", *(f"/{name}" for name in message.names)):
                    yield Ref(path + name, message.revision, error=problem, allow=listed.allow)
        if problems:  # the emails in these folders are unknown, so no email counts as removed
            yield Ref("", error=f"not all folders can be read: {'; '.join(problems[:3])}")

    def fetch(self, ref: Ref) -> Blob:
        """The text of an email, or the bytes of an attachment. Raises ConnectorError if it is gone."""
        if not self._listed:
            list(self.refs())
        path, _, name = ref.path.partition("/")
        listed = self._listed.get(path)
        if listed is None:
            raise ConnectorError(f"The email {path!r} no longer exists.", "The next ingest removes it.")
        if self._last_mail is None or self._last_mail[0] != path:
            uid = listed.message.uid
            found = self._in_folder(listed.folder, lambda client: client.fetch([uid], ["BODY.PEEK[]"]))
            data = found.get(uid, {}).get(b"BODY[]")
            if data is None or self._selected != (listed.folder, listed.validity):
                raise ConnectorError(
                    f"The email {path!r} was moved or removed after it was listed.", "The next ingest looks for it."
                )
            self._last_mail = path, parse_message(data)
        message = self._last_mail[1]
        names = attachment_names(find_attachments(message)) if name else []
        if name and name not in names:  # a damaged email, which can be read in two ways
            raise ConnectorError(f"The email {path!r} has no attachment {name!r}, which the server lists.")
        return mail_blob(ref.path, message, names.index(name) if name else None)

    # --- Listing -------------------------------------------------------------------------------------------------

    def _folders(self, client: IMAPClient) -> list[tuple[str, str, Sequence[bytes]]]:
        """Name, path with `/`, and flags of each folder that can hold emails, the inbox first."""
        if self.identities is not None and not client.has_capability("ACL"):
            raise ConfigError(f"{self.root}: the server has no ACLs (RFC 4314).", "Leave out the option identities.")
        folders = []
        for flags, delimiter, name in client.list_folders():
            path = name.replace(delimiter.decode(), "/") if delimiter else name
            below = not self._folder or f"{path}/".startswith(f"{self._folder}/")
            if below and not {rb"\noselect", rb"\nonexistent"} & {flag.lower() for flag in flags}:
                folders.append((name, path, flags))
        if self._folder and not folders:
            raise SourceError(f"{self.root}: there is no folder {self._folder!r}.", "Check its name.")
        return sorted(folders, key=lambda folder: (folder[1].upper() != "INBOX", folder[1]))

    def _list_folder(self, folder: str) -> None:
        """Add the messages of a folder to the listing. Raises ConnectorError."""
        allow, error = (None, "") if self.identities is None else self._readers(folder, self.identities)
        validity, messages = self._messages(folder)
        for message in messages:
            path = message.path
            if path in self._listed and self._listed[path].message.revision != message.revision:
                path = f"{path}#{message.revision[:8]}"
            known = self._listed.get(path)
            if known is None or (known.error and not error):
                self._listed[path] = _Listed(folder, validity, message, allow, error)
            elif not error:  # who may read one of the folders may see it
                both = None if known.allow is None or allow is None else tuple(sorted({*known.allow, *allow}))
                known.allow = both

    def _readers(self, folder: str, identities: Identities) -> tuple[_Groups, str]:
        """The groups that may read a folder; or None, and why they are not known."""
        try:
            acl = self._run(lambda client: client.getacl(folder))
        except ConnectorError as error:
            return None, f"the permissions of its folder {folder!r} cannot be read: {error.message}"
        readers = [who.decode("utf-8", "replace") for who, rights in acl if b"r" in rights]
        if any(who.startswith("-") for who in readers):  # it is refused, and who is in which group is not known
            return (), ""
        return identities.groups(readers), ""

    def _messages(self, folder: str) -> tuple[int, list[_Message]]:
        """The UIDVALIDITY of a folder, and all of its messages that are not marked as deleted."""

        def read_state(client: IMAPClient) -> list[int]:
            items = ["UIDVALIDITY", "UIDNEXT", "MESSAGES", *["HIGHESTMODSEQ"] * client.has_capability("CONDSTORE")]
            status = client.folder_status(folder, items)
            return [int(status.get(item.encode(), 0)) for item in items]

        state = self._run(read_state)
        old_state, messages = self._read_cache(folder)
        if state == old_state and len(state) == 4 and state[3]:  # it changes with each change in the folder
            return state[0], messages
        known = {message.uid: message for message in messages} if old_state[:1] == state[:1] else {}
        uids = sorted(self._in_folder(folder, lambda client: client.search("UNDELETED")))
        messages = [known[uid] for uid in uids if uid in known]
        new = [uid for uid in uids if uid not in known]
        try:
            for start in range(0, len(new), _BATCH):
                work = partial(IMAPClient.fetch, messages=new[start : start + _BATCH], data=_DESCRIPTION)
                found = self._in_folder(folder, work)
                messages += [_describe(uid, data) for uid, data in found.items() if b"BODYSTRUCTURE" in data]
        except ConnectorError:
            self._write_cache(folder, state[:1], messages)  # the next listing goes on from here
            raise
        self._write_cache(folder, state, messages)
        return state[0], messages

    def _cache_file(self, cache: Path, folder: str) -> Path:
        return cache / f"{blake2b(f'{self.root} {folder}'.encode(), digest_size=16).hexdigest()}.jsonl"

    def _read_cache(self, folder: str) -> tuple[list[int], list[_Message]]:
        with contextlib.suppress(OSError, ValueError, TypeError, IndexError):
            if self._cache is not None:
                lines = self._cache_file(self._cache, folder).read_text(encoding="utf-8").splitlines()
                return json.loads(lines[0]), [_Message(*json.loads(line)) for line in lines[1:]]
        return [], []

    def _write_cache(self, folder: str, state: list[int], messages: Sequence[_Message]) -> None:
        with contextlib.suppress(OSError):  # the next listing asks the server again
            if self._cache is not None:
                self._cache.mkdir(mode=0o700, exist_ok=True)  # not before there is a collection
                file = self._cache_file(self._cache, folder)
                new = file.with_suffix(".new")
                new.write_text("\n".join(map(json.dumps, (state, *messages))), encoding="utf-8")
                new.replace(file)

    # --- Connection ----------------------------------------------------------------------------------------------

    def _in_folder(self, folder: str, work: Callable[[IMAPClient], _T]) -> _T:
        """Do something in a folder, which is selected for reading only. Raises ConnectorError."""

        def select(client: IMAPClient) -> _T:
            if self._selected is None or self._selected[0] != folder:
                self._selected = None
                self._selected = folder, int(client.select_folder(folder, readonly=True)[b"UIDVALIDITY"])
            return work(client)

        return self._run(select)

    def _run(self, work: Callable[[IMAPClient], _T], error_class: type[SourceError] = ConnectorError) -> _T:
        """Do something with the connection, and again with a new one after a temporary error."""
        attempt = 0
        while True:
            attempt += 1
            try:
                if self._client is None:
                    self._client = self._connect()
                return work(self._client)
            except (IMAPClientError, OSError) as error:
                reason = hide(" ".join(str(error).split()), *self._secrets).rstrip(".")
                broken = isinstance(error, IMAPClientAbortError | OSError)
                temporary = _TEMPORARY.search(reason) or (broken and not isinstance(error, _PERMANENT))
                if broken and self._client is not None:
                    with contextlib.suppress(IMAPClientError, OSError):
                        self._client.shutdown()
                    self._client = self._selected = None
                if isinstance(error, LoginError) and not temporary:
                    raise SourceError(
                        f"{self.root}: the server refuses the user name, password or token: {reason}.",
                        "Check the environment variables; a token may have expired. Nothing was changed.",
                    ) from None
                if attempt > _RETRIES or not temporary:
                    hint = "Check host, port and TLS (imaps:// or imap://). " if isinstance(error, OSError) else ""
                    raise error_class(f"{self.root} cannot be read: {reason}.", f"{hint}Nothing was changed.") from None
            self.sleep(2.0 ** (attempt - 1))

    def _connect(self) -> IMAPClient:
        user, password, token = (expand(part, quoted=False) for part in (self._user, self._password, self._token or ""))
        client = IMAPClient(self._host, self._port, ssl=self._tls, timeout=SocketTimeout(10, 60))
        try:
            if not self._tls and self._host not in ("localhost", "127.0.0.1", "::1"):
                client.starttls(ssl.create_default_context())
            if not token:
                client.login(user, password)
            elif client.has_capability("AUTH=OAUTHBEARER"):
                client.oauthbearer_login(user, token)
            else:
                client.oauth2_login(user, token)
        except BaseException:
            client.shutdown()
            raise
        return client


def _describe(uid: int, data: dict[bytes, Any]) -> _Message:
    """A message, by its size, headers and structure. The attachments are those that `find_attachments` would find."""
    size, structure = int(data[b"RFC822.SIZE"]), data[b"BODYSTRUCTURE"]
    headers = next(value for key, value in data.items() if key.startswith(b"BODY[HEADER")) or b""
    revision = blake2b(repr((size, structure, headers)).encode(), digest_size=16).hexdigest()
    names: list[str] = []
    encrypted, problem = False, ""
    try:
        encrypted = is_encrypted(_headers_of(structure))
        names = attachment_names(
            [found for part in _leaves(structure) for found in find_attachments(_headers_of(part))]
        )
    except Exception as error:  # the standard library raises many kinds of errors for broken headers
        problem = f"the email cannot be read: {error}"
    return _Message(uid, message_id(headers) or revision, revision, size, names, encrypted, problem)


def _leaves(part: Any) -> Iterator[Any]:
    """The parts of a BODYSTRUCTURE (RFC 9051, 7.5.2) that have content; an attached message is one."""
    if isinstance(part[0], list):
        for inner in part[0]:
            yield from _leaves(inner)
    else:
        yield part


def _headers_of(part: Any) -> EmailMessage:
    """A message of the headers that a part of a BODYSTRUCTURE stands for."""
    if isinstance(part[0], list):
        return parse_message(_header("Content-Type", b"multipart/" + part[1], part[2]))
    media_type = b"/".join(part[:2])
    size_of_type = 3 if media_type.lower() == b"message/rfc822" else part[0].lower() == b"text"
    disposition = next(iter(part[8 + size_of_type :]), None)
    headers = _header("Content-Type", media_type, part[2])
    headers += _header("Content-ID", part[3], ()) if part[3] else b""
    headers += _header("Content-Disposition", *disposition) if disposition else b""
    return parse_message(headers)


def _header(name: str, value: bytes, parameters: Sequence[bytes] | None) -> bytes:
    line = b"%s: %s" % (name.encode(), value)
    for key, text in zip((parameters or ())[::2], (parameters or ())[1::2], strict=False):
        text = b"".join((text if isinstance(text, bytes) else str(text).encode()).splitlines())
        quoted = text if key.endswith(b"*") else b'"%s"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        line += b"; %s=%s" % (key, quoted)
    return line + b"\r\n"
