"""Download a GGUF file from the Hugging Face hub into its cache, with resume, progress and checksum.

huggingface_hub deletes a partial file when a download ends early, and does not compute the hash of a complete one. So
the file is written to the cache's folder of blobs here, and huggingface_hub only links it into the snapshot.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ragfm.core.errors import DamagedModelError, ModelNotFoundError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.models.model_lookup import hub_errors, weights_sha256

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository on the hub. `sha256`, `bytes` and `licence` are None where they are not known.

    `conditions` are those of a licence that restricts use.
    """

    repository: str
    file: str
    revision: str = "main"
    sha256: str | None = None
    bytes: int | None = None
    licence: str | None = None
    conditions: str | None = None

    @property
    def url(self) -> str:
        """The address to download the file from."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, self.file, revision=self.revision)

    @property
    def target(self) -> Path:
        """Path of the file in the Hugging Face cache. It is exact for a pinned revision."""
        return _cache_folder(self.repository) / "snapshots" / self.revision / self.file


def cached_file(wanted: HubFile) -> Path | None:
    """The file in the Hugging Face cache, or None. Its checksum was verified when it was downloaded.

    Raises ModelNotFoundError for a name that no repository can have.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(
            wanted.repository, wanted.file, cache_dir=constants.HF_HUB_CACHE, revision=wanted.revision
        )
    except HFValidationError:
        raise ModelNotFoundError(
            f"'{wanted.repository}' is not a valid name on the Hugging Face hub.", "Specify OWNER/NAME."
        ) from None
    return Path(path) if isinstance(path, str) else None


def read_hub_licence(repository: str) -> str | None:
    """The licence that a repository states, or None. Raises ModelNotFoundError if the hub cannot provide it."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, timeout=10)
    except hub_errors() as error:
        raise ModelNotFoundError(f"'{repository}' cannot be downloaded: {error}.", "Try again.") from error
    stated = info.card_data.license if info.card_data else None
    return str(stated) if stated else None


def download(wanted: HubFile, progress: ProgressCallback = ignore_progress) -> tuple[Path, str | None]:
    """Download a file, or the rest of it, and verify its SHA-256.

    Returns its path and its checksum, which is that of `wanted` or, without one, of the hub; None if neither has one.
    An interrupted download continues the next time. Raises ModelNotFoundError, and DamagedModelError for a file with
    another checksum, which is deleted.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        WeakFileLock,
        build_hf_headers,
        disable_progress_bars,
    )

    disable_progress_bars()  # `progress` replaces those of huggingface_hub
    folder = _cache_folder(wanted.repository) / "blobs"
    try:
        headers = build_hf_headers()
        metadata = get_hf_file_metadata(wanted.url, headers=headers)
        if not metadata.etag:
            raise ValueError("the hub sent no ETag")
        if urlsplit(metadata.location).netloc != urlsplit(wanted.url).netloc:
            headers.pop("authorization", None)  # the token is for the hub, not for its file servers
        expected = wanted.sha256 or (metadata.etag if _SHA256.fullmatch(metadata.etag) else None)
        blob, partial = folder / metadata.etag, folder / f"{metadata.etag}.part"
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / f"{metadata.etag}.lock"):
            link = cached_file(wanted) if wanted.sha256 else None  # without a pinned hash, an older version is valid
            for file in (link, blob):
                if expected and file and file.exists() and weights_sha256(file) != expected:
                    file.unlink()
            if not blob.exists():
                with _ReportedFile(partial, metadata.size, progress) as target:
                    have = target.tell()
                    if metadata.size is None or have < metadata.size:
                        http_get(
                            metadata.location, target, resume_size=have, headers=headers, expected_size=metadata.size
                        )
                actual = weights_sha256(partial)
                if expected and actual != expected:
                    partial.unlink()
                    raise DamagedModelError(
                        f"The download of '{wanted.repository}/{wanted.file}' is damaged and was deleted: "
                        f"expected sha256 {expected}, found {actual}.",
                        "Run the command again. If the error remains, the file on the hub has changed.",
                    )
                partial.rename(blob)
        path = hf_hub_download(
            wanted.repository, wanted.file, revision=wanted.revision, cache_dir=constants.HF_HUB_CACHE
        )
    except hub_errors() as error:
        raise ModelNotFoundError(
            f"The download of '{wanted.repository}/{wanted.file}' failed: {error}.",
            "Run the command again: it continues where it stopped.",
        ) from error
    return Path(path), expected


class _ReportedFile(io.FileIO):
    """A file to append to, which reports each write."""

    def __init__(self, path: Path, total: int | None, progress: ProgressCallback) -> None:
        super().__init__(path, "ab")
        self._total, self._progress = total, progress

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._progress(Progress("download", self.tell(), self._total))
        return written


def _cache_folder(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
