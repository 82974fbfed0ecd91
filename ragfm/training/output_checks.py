"""Where results may be written: over what ragfm wrote, never over the base or a model that came from elsewhere."""

from __future__ import annotations

from pathlib import Path

from ragfm.core.errors import DamagedModelError, DataError
from ragfm.core.output_folder import OUTPUT
from ragfm.models.adapters import CHECKPOINT, RECORD
from ragfm.models.gguf_header import read_header

_ELSEWHERE = "Name another place."


def check_training(folder: Path, base: Path) -> None:
    """Raise DataError where no adapter can be trained into a folder."""
    check_no_adapter(folder)
    check_folder(folder, base, goes_on=CHECKPOINT)


def check_no_adapter(folder: Path) -> None:
    """Raise DataError where a folder holds an adapter."""
    if (folder / RECORD).exists():
        raise DataError(f"{folder} holds an adapter already.", "Name another folder, or remove it.")


def check_folder(folder: Path, base: Path, *, adapter: Path | None = None, goes_on: str | None = None) -> None:
    """Raise DataError where weights written into a folder would replace, or mix with, others than ragfm's own.

    What ragfm wrote is marked; in a folder without the mark, the file `goes_on` says that it was begun there.
    """
    _check_apart(folder, base, adapter)
    if folder.is_file():
        raise DataError(f"{folder} is a file.", "Name a folder.")
    if any((folder / name).exists() for name in (OUTPUT, goes_on) if name):
        return
    names = ("*.safetensors", "config.json", "adapter_config.json")
    if found := next((path for name in names for path in sorted(folder.glob(name))), None):
        raise DataError(f"{folder} holds a model already: {found.name}.", "Name another folder, or remove it.")


def check_file(file: Path, base: Path, *, adapter: Path | None = None) -> None:
    """Raise DataError where a GGUF file would replace anything but a GGUF adapter."""
    _check_apart(file, base, adapter)
    if file.is_dir():
        raise DataError(f"{file} is a folder.", "Name a file.")
    if file.exists() and not _is_adapter(file):
        raise DataError(f"{file} is there already, and is no GGUF adapter.", "Name another file, or remove it.")


def _check_apart(out: Path, base: Path, adapter: Path | None) -> None:
    if base.resolve() in out.resolve().parents:
        raise DataError(f"{out} lies in the base, {base}.", _ELSEWHERE)
    for what, path in (("base", base), ("adapter", adapter)):
        if path and (out.resolve() == path.resolve() or (out.exists() and path.exists() and out.samefile(path))):
            raise DataError(f"{out} is the {what} itself.", _ELSEWHERE)


def _is_adapter(file: Path) -> bool:
    try:
        return read_header(file).metadata.get("general.type") == "adapter"
    except DamagedModelError:
        return False
