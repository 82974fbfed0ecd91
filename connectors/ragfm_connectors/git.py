"""Files of a git repository, local or remote, as they are in one of its commits.

No program of the repository is run: dulwich reads the objects, in a confined process; it supports neither hooks nor
filters, and nothing is checked out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from dulwich.client import get_transport_and_path
from dulwich.config import ConfigFile
from dulwich.errors import GitProtocolError, NotGitRepository
from dulwich.object_format import DEFAULT_OBJECT_FORMAT
from dulwich.object_store import BaseObjectStore, DiskObjectStore
from dulwich.objects import Blob as GitBlob
from dulwich.objects import ObjectID, Tree
from dulwich.refs import Ref as GitRef
from dulwich.repo import Repo, UnsupportedExtension, UnsupportedVersion
from urllib3.exceptions import HTTPError

from ragfm.core.access_groups import intersect_groups
from ragfm.core.errors import ConfigError, ConnectorError, ParseError, SkipDocument, SourceError
from ragfm.core.types import Blob, Ref, Scalar
from ragfm.parsing.own.source_code import GRAMMARS
from ragfm_connectors.access_files import ACCESS_FILE, AccessRule, parse_access_file
from ragfm_connectors.git_service import ConfinedRepository, SafeRepo
from ragfm_connectors.patterns import PathFilter, join_path
from ragfm_connectors.secrets import check_no_secret, expand, hide, without_user

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_NETWORK_ERRORS = (OSError, GitProtocolError, NotGitRepository, HTTPError, ValueError, KeyError)
_SCHEMES = ("https", "http", "ssh", "git")
_MAX_ENTRIES = 1_000_000  # ten trees that each contain the next one ten times have ten thousand million entries
_MAX_DEPTH = 200
_MAX_TREE = 1 << 26  # bytes of a folder's entries
_SUBMODULE = 0o160000


class GitConnector:
    """All files of a commit. The repository is a local folder, bare or not, or an https, ssh, http or git address.

    `ref` is a branch, a tag or, for a local repository, a commit hash; the default is HEAD. Of a remote repository,
    each listing fetches the newest commit, without its history, into a temporary folder. The revision of a file is the
    hash of its content; its programming `language` is metadata.

    Submodules, symbolic links, hidden files unless `hidden` is set, files larger than `max_bytes` and files stored in
    git-lfs are skipped. Access files apply as they are in the commit. A user name and password in the address are
    written as `${NAME}`, which stands for an environment variable.
    """

    fetch_anywhere = True

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        ref: str = "HEAD",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises SourceError if there is no repository at a path, ConfigError for an address with a secret."""
        self._location = os.fspath(location)
        self._remote = "://" in self._location
        if self._remote:
            scheme = self._location.partition("://")[0].lower()
            if scheme not in _SCHEMES:
                raise ConfigError(
                    f"The scheme {scheme!r} is not supported for repositories.", f"Use {', '.join(_SCHEMES)}."
                )
            check_no_secret(self._location, user=scheme in ("https", "http"))
            self.root: str | Path = without_user(self._location)
        else:
            self.root = Path(os.path.abspath(self._location))  # noqa: PTH100  keeps links in its name
            self._open().close()
        self._ref = ref
        self._paths = PathFilter(include, exclude)
        self._hidden = hidden
        self._max_bytes = max_bytes
        self._temporary: TemporaryDirectory[str] | None = None
        self._repository: ConfinedRepository | None = None
        self._entries = 0  # listed so far

    def refs(self) -> Iterator[Ref]:
        """All files of the commit, in git's order. Raises SourceError if the commit cannot be found or read."""
        reference = self._ref
        if self._remote:
            self._repository, reference = self._clone()
        else:
            with self._open() as opened:
                folders = [opened.path, opened.controldir(), opened.commondir()]
                stores: list[BaseObjectStore] = [opened.object_store]
                while stores:  # a repository may share objects with others
                    store = stores.pop()
                    if isinstance(store, DiskObjectStore) and str(store.path) not in folders:
                        folders.append(os.fsdecode(store.path))
                        stores += store.alternates
                self._repository = ConfinedRepository(opened.path, folders)
        try:
            tree = self._repository.tree(reference)
        except ParseError as error:
            raise SourceError(
                f"The repository {str(self.root)!r} has no commit {self._ref!r}.", "Specify a branch, a tag or a hash."
            ) from error
        self._entries = 0
        try:
            yield from self._list_tree(self._repository, "", tree, None)
        except (ParseError, ValueError) as error:
            raise SourceError(f"The repository {str(self.root)!r} is damaged: {error}.", "Run `git fsck`.") from error

    def fetch(self, ref: Ref) -> Blob:
        """A file of the listed commit. Raises ConnectorError, and SkipDocument for a file stored in git-lfs."""
        if self._repository is None:
            list(self.refs())
        assert self._repository is not None
        try:
            found = self._repository.read(ObjectID(ref.revision.encode()), self._max_bytes)
        except ParseError as error:
            raise ConnectorError(f"{ref.path!r} cannot be read: {error.message}.") from error
        if isinstance(found, int):
            raise SkipDocument(f"{found:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
        if not isinstance(found, GitBlob):
            raise ConnectorError(f"{ref.path!r} is not a file.")
        data = found.data
        if data.startswith(_LFS_POINTER):
            raise SkipDocument("its content is stored in git-lfs, outside of the repository")
        grammar = GRAMMARS.get(PurePosixPath(ref.path).suffix.lower())
        metadata: dict[str, Scalar] = {"language": grammar[0]} if grammar else {}
        return Blob(data, None, metadata)

    def _list_tree(
        self, store: ConfinedRepository, path: str, identity: ObjectID, allow: tuple[str, ...] | None
    ) -> Iterator[Ref]:
        tree = store.read(identity, _MAX_TREE)
        if not isinstance(tree, Tree):
            raise ValueError(f"{path!r} is not a tree")
        entries = [(entry.path, entry.mode, entry.sha) for entry in tree.items()]
        access = AccessRule()
        for name, _, sha in entries:
            if name == ACCESS_FILE.encode():
                file, not_a_file = store.read(sha, _MAX_TREE), AccessRule((), "it is not a file")
                access = parse_access_file(file.data) if isinstance(file, GitBlob) else not_a_file
        if access.problem:
            yield access.problem_ref(path)
        allow = intersect_groups(allow, access.groups)
        for name, mode, sha in entries:
            text = name.decode("utf-8", "backslashreplace")
            entry_path = join_path(path, text)
            is_folder = stat.S_ISDIR(mode)
            self._entries += 1
            if self._entries > _MAX_ENTRIES:
                raise SourceError(
                    f"The repository has over {_MAX_ENTRIES:,} files and folders.", "Leave some out with --exclude."
                )
            wanted = self._paths.may_contain(entry_path) if is_folder else self._paths.includes(entry_path)
            if name == ACCESS_FILE.encode() or not wanted:
                continue
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise ValueError(f"{entry_path!r} is not a valid path")
            if text.encode() != name:
                yield Ref(entry_path, skip="its name is not UTF-8")
            elif name.startswith(b".") and not self._hidden:
                yield Ref(entry_path, skip="hidden")
            elif is_folder and entry_path.count("/") >= _MAX_DEPTH:
                yield Ref(entry_path, skip=f"it lies over {_MAX_DEPTH} folders deep")
            elif is_folder:
                yield from self._list_tree(store, entry_path, sha, allow)
            elif stat.S_IFMT(mode) == _SUBMODULE:
                yield Ref(entry_path, skip="a submodule; ingest its repository as another source")
            elif stat.S_ISLNK(mode):
                yield Ref(entry_path, skip="symbolic link")
            else:
                yield Ref(entry_path, sha.decode(), allow=allow)

    def _open(self) -> Repo:
        try:
            repository = SafeRepo(os.fspath(self.root))
            if repository.object_format != DEFAULT_OBJECT_FORMAT:
                repository.close()
                raise UnsupportedExtension(f"objectFormat = {repository.object_format.name}")
        except NotGitRepository as error:
            hint = "Specify its top folder, or an address such as https://HOST/PATH or ssh://USER@HOST/PATH."
            raise SourceError(f"There is no git repository at {str(self.root)!r}.", hint) from error
        except (UnsupportedExtension, UnsupportedVersion) as error:
            raise SourceError(
                f"The git repository {str(self.root)!r} has an unsupported storage format: {error}.", "Clone it again."
            ) from error
        except (OSError, ValueError) as error:  # a ValueError quotes the configuration
            reason = error.strerror if isinstance(error, OSError) else "its configuration is invalid"
            raise SourceError(f"The git repository {str(self.root)!r} cannot be opened: {reason}.") from error
        return repository

    def _clone(self) -> tuple[ConfinedRepository, str]:
        """A temporary clone of the commit at `ref`, without history, and the commit's hash."""
        self._temporary = TemporaryDirectory(prefix="ragfm-git-")
        repository = Repo.init_bare(self._temporary.name)
        try:
            # With an empty configuration, since one can name programs to run.
            client, path = get_transport_and_path(
                expand(self._location), config=ConfigFile(), quiet=True, thin_packs=False
            )
            remote_refs = client.get_refs(path.encode()).refs
            commit_id = None
            for prefix in ("", "refs/heads/", "refs/tags/", "refs/"):
                commit_id = commit_id or remote_refs.get(GitRef(f"{prefix}{self._ref}".encode()))
            if commit_id is None:
                raise SourceError(f"The repository {self.root!r} has no {self._ref!r}.", "Specify a branch or a tag.")
            pack_file = Path(repository.object_store.path, "pack", "pack-fetched.pack")
            with pack_file.open("w+b") as pack:
                graph = repository.get_graph_walker()
                client.fetch_pack(path.encode(), lambda *_, **__: [commit_id], graph, pack.write, depth=1)
                pack.flush()
                pack.seek(0)
                confined = ConfinedRepository(self._temporary.name, [self._temporary.name])
                pack_file.with_suffix(".idx").write_bytes(confined.index_of(pack))
        except (*_NETWORK_ERRORS, ParseError) as error:
            reason = hide(f"{type(error).__name__}: {error}", self._location)
            raise SourceError(
                f"The repository {self.root!r} cannot be fetched: {reason}.", "Nothing was changed."
            ) from None
        finally:
            repository.close()
        return confined, commit_id.decode()
