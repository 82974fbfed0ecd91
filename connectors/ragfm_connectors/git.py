"""Files of a git repository, here or elsewhere, as one of its commits has them.

Nothing of the repository is run: objects are read by dulwich, which knows neither hooks nor filters, and nothing is
checked out.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dulwich.client import get_transport_and_path
from dulwich.config import ConfigFile
from dulwich.errors import FileFormatException, GitProtocolError, NotGitRepository
from dulwich.errors import ObjectMissing as MissingObject
from dulwich.objects import Blob as GitBlob
from dulwich.objects import Commit, ObjectID, Tree
from dulwich.objectspec import parse_commit
from dulwich.refs import Ref as GitRef
from dulwich.repo import Repo, UnsupportedExtension, UnsupportedVersion
from urllib3.exceptions import HTTPError

from ragfm.core.access_groups import both
from ragfm.core.errors import ConfigError, ConnectorError, SkipDocument, SourceError
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.access_files import FILE as ACCESS
from ragfm_connectors.access_files import Access, parse_access
from ragfm_connectors.patterns import PathFilter, below
from ragfm_connectors.programming_languages import LANGUAGES
from ragfm_connectors.secrets import check_no_secret, expand, hide, without_user

if TYPE_CHECKING:
    from dulwich.object_store import BaseObjectStore

_POINTER = b"version https://git-lfs.github.com/spec/"  # what stands in place of a file that git-lfs keeps
_BROKEN = (KeyError, OSError, ValueError, AssertionError, zlib.error, FileFormatException, MissingObject)
_UNREACHABLE = (OSError, GitProtocolError, NotGitRepository, HTTPError, ValueError, KeyError)
_SCHEMES = ("https", "http", "ssh", "git")
_MOST, _DEEPEST = 1_000_000, 200  # files, and folders in folders: ten trees of ten entries can be ten thousand million


class GitConnector:
    """All files at a commit of a repository: a folder, bare or not, or an address by https, ssh, http or git.

    `ref` is a branch, a tag or, of a repository here, a commit's hash; by default what HEAD is. Of a repository
    elsewhere the newest commit alone is fetched, into a temporary folder, at each listing. A file's revision is the
    hash of its content, and its `language` is told by its suffix.

    Submodules, symbolic links, hidden files unless `hidden` is set, those of more than `max_bytes` and those that
    git-lfs keeps elsewhere are skipped. `.ragfm-access` files hold as they stand in the commit. A user's name and
    password in an address are written as `${NAME}`, which is looked up in the environment.
    """

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
        """Raises SourceError where there is no repository at a path, ConfigError for an address with a secret."""
        self._location = os.fspath(location)
        self._remote = "://" in self._location
        if self._remote:
            scheme = self._location.partition("://")[0].lower()
            if scheme not in _SCHEMES:
                raise ConfigError(f"A repository can't be reached by {scheme!r}.", f"Use {', '.join(_SCHEMES)}.")
            check_no_secret(self._location, user=scheme in ("https", "http"))
            self.root: str | Path = without_user(self._location)
        else:
            self.root = Path(os.path.abspath(self._location))  # noqa: PTH100  keeps links in its name
            self._open().close()
        self._ref = ref
        self._paths = PathFilter(include, exclude)
        self._hidden = hidden
        self._max_bytes = max_bytes
        self._fetched: TemporaryDirectory[str] | None = None
        self._repository: Repo | None = None

    def refs(self) -> Iterator[Ref]:
        """All files of the commit, in git's order. Raises SourceError where it can't be found or read to its end."""
        if self._repository is not None:
            self._repository.close()
        self._repository = self._fetch() if self._remote else self._open()
        commit = self._commit(self._repository)
        try:
            yield from _Listing(self._repository.object_store, self._paths, hidden=self._hidden).tree("", commit.tree)
        except _BROKEN as error:
            what = f"{type(error).__name__}: {error}"
            raise SourceError(f"The repository {str(self.root)!r} is damaged: {what}.", "Run `git fsck`.") from error

    def fetch(self, ref: Ref) -> Blob:
        """A file as the listed commit has it. Raises ConnectorError, and SkipDocument for one that git-lfs keeps."""
        if self._repository is None:
            list(self.refs())
        assert self._repository is not None
        try:
            found = self._repository.object_store[ObjectID(ref.revision.encode())]
            data = found.data if isinstance(found, GitBlob) else None
        except _BROKEN as error:
            raise ConnectorError(f"{ref.path!r} can't be read: {type(error).__name__}: {error}.") from error
        if data is None:
            raise ConnectorError(f"{ref.path!r} is no file.")
        if len(data) > self._max_bytes:
            raise SkipDocument(f"{len(data):,} bytes, the limit is {self._max_bytes:,}")
        if data.startswith(_POINTER):
            raise SkipDocument("its content is kept by git-lfs, outside of the repository")
        language = LANGUAGES.get(PurePosixPath(ref.path).suffix.lower())
        metadata: dict[str, Scalar] = {"language": language} if language else {}
        return Blob(data, None, metadata)

    def _open(self) -> Repo:
        try:
            return _Repository(os.fspath(self.root))
        except NotGitRepository as error:
            raise SourceError(f"There is no git repository at {str(self.root)!r}.", "Check the path.") from error
        except (UnsupportedExtension, UnsupportedVersion) as error:
            raise SourceError(f"How {str(self.root)!r} is stored can't be read: {error}.", "Clone it anew.") from error
        except (OSError, ValueError) as error:  # a ValueError says what stands in the configuration
            what = error.strerror if isinstance(error, OSError) else "its configuration is no text of git's"
            raise SourceError(f"The git repository {str(self.root)!r} can't be opened: {what}.") from error

    def _fetch(self) -> Repo:
        """The commit at the ref of a repository elsewhere, without what came before it."""
        self._fetched = TemporaryDirectory(prefix="ragfm-git-")
        repository = Repo.init_bare(self._fetched.name)
        try:
            # With an empty configuration, since one can name programs to run.
            client, path = get_transport_and_path(expand(self._location), config=ConfigFile(), quiet=True)
            advertised = client.get_refs(path.encode()).refs
            tip = next((advertised[name] for name in _names(self._ref) if advertised.get(name)), None)
            if tip is None:
                raise SourceError(f"The repository {self.root!r} has no {self._ref!r}.", "Name a branch or a tag.")
            client.fetch(path.encode(), repository, determine_wants=lambda *_, **__: [tip], depth=1)
            repository.refs[GitRef(b"refs/heads/fetched")] = tip
        except _UNREACHABLE as error:
            what = hide(f"{type(error).__name__}: {error}", self._location)
            raise SourceError(
                f"The repository {self.root!r} can't be fetched: {what}.", "Nothing was changed."
            ) from None
        return repository

    def _commit(self, repository: Repo) -> Commit:
        wanted = b"refs/heads/fetched" if self._remote else self._ref.encode()
        try:
            return parse_commit(repository, wanted)
        except _BROKEN as error:
            raise SourceError(
                f"The repository {str(self.root)!r} has no commit {self._ref!r}.", "Name a branch, a tag or a hash."
            ) from error


class _Repository(Repo):
    """Of whose configuration counts how it is stored: the rest names programs, other files, and sizes such as `50m`."""

    def get_config(self) -> ConfigFile:
        kept = ConfigFile()
        try:
            with Path(self.commondir(), "config").open("rb") as file:
                given = ConfigFile.from_file(file, file_opener=lambda _: BytesIO())
        except FileNotFoundError:
            return kept
        stored = {b"core": (b"repositoryformatversion",), b"extensions": None}
        for section, names in stored.items():
            for name, value in given.items((section,)):
                if names is None or name.lower() in names:
                    kept.set((section,), name, value)
        return kept


def _names(ref: str) -> list[GitRef]:
    return [GitRef(f"{prefix}{ref}".encode()) for prefix in ("", "refs/heads/", "refs/tags/", "refs/")]


class _Listing:
    """A walk through the trees of a commit."""

    def __init__(self, store: BaseObjectStore, paths: PathFilter, *, hidden: bool) -> None:
        self._store = store
        self._paths = paths
        self._hidden = hidden
        self._seen = 0

    def tree(self, path: str, identity: ObjectID, allow: tuple[str, ...] | None = None) -> Iterator[Ref]:
        tree = self._store[identity]
        if not isinstance(tree, Tree):
            raise ValueError(f"{path!r} is no tree")
        entries = [(entry.path, entry.mode, entry.sha) for entry in tree.items()]
        access = self._access(next((sha for name, _, sha in entries if name == ACCESS.encode()), None))
        if access.wrong:
            where = below(path, ACCESS)
            yield Ref(where, error=f"{access.wrong}, so no group may see what lies beside and below it")
        allow = both(allow, access.groups)
        for name, mode, sha in entries:
            yield from self._entry(path, name, mode, sha, allow)

    def _access(self, identity: ObjectID | None) -> Access:
        if identity is None:
            return Access()
        found = self._store[identity]
        return parse_access(found.data) if isinstance(found, GitBlob) else Access((), "it is no file")

    def _entry(
        self, folder: str, name: bytes, mode: int, sha: ObjectID, allow: tuple[str, ...] | None
    ) -> Iterator[Ref]:
        path = below(folder, name.decode("utf-8", "backslashreplace"))
        is_folder = stat.S_ISDIR(mode)
        self._seen += 1
        if self._seen > _MOST:
            raise SourceError(f"The repository has over {_MOST:,} files and folders.", "Leave some out by `exclude`.")
        if name == ACCESS.encode() or not (self._paths.may_hold(path) if is_folder else self._paths.takes(path)):
            return
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise ValueError(f"{path!r} can't be a path")
        if not _is_utf8(name):
            yield Ref(path, skip="its name is not UTF-8")
        elif name.startswith(b".") and not self._hidden:
            yield Ref(path, skip="hidden")
        elif is_folder and path.count("/") >= _DEEPEST:
            yield Ref(path, skip=f"it lies over {_DEEPEST} folders deep")
        elif is_folder:
            yield from self.tree(path, sha, allow)
        elif stat.S_IFMT(mode) == 0o160000:
            yield Ref(path, skip="a submodule; ingest its repository as a source of its own")
        elif stat.S_ISLNK(mode):
            yield Ref(path, skip="symbolic link")
        else:
            yield Ref(path, sha.decode(), allow=allow)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
