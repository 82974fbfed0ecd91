"""Checks of output paths: only files that ragfm wrote are replaced, never the base or a model from elsewhere."""

from __future__ import annotations

from pathlib import Path

from ragfm.core.errors import DamagedModelError, DataError
from ragfm.core.output_folder import OUTPUT
from ragfm.models.adapters import BEST, CHECKPOINT, PEFT_CONFIG, RECORD
from ragfm.models.gguf_header import read_header


def check_training_output(folder: Path, base: Path) -> None:
    """Raise DataError if no adapter can be trained into a folder."""
    check_no_adapter(folder)
    check_output_folder(folder, base, checkpoint=CHECKPOINT)


def check_no_adapter(folder: Path) -> None:
    """Raise DataError if a folder holds a finished adapter."""
    if (folder / RECORD).exists():
        raise DataError(f"{folder} already contains an adapter.", "Use another folder, or delete this one.")


def check_output_folder(
    folder: Path, base: Path, *, adapter: Path | None = None, checkpoint: str | None = None
) -> None:
    """Raise DataError if weights written into a folder would replace, or mix with, a model that ragfm did not write.

    Folders that ragfm wrote carry a mark; in a folder without it, a file named `checkpoint` shows that training began
    there.
    """
    _check_not_input(folder, base, adapter)
    if folder.is_file():
        raise DataError(f"{folder} is a file.", "Use a folder.")
    if (folder / OUTPUT).exists() or (checkpoint and (folder / checkpoint).exists()):
        return
    for pattern in ("*.safetensors", "config.json", PEFT_CONFIG):
        for path in sorted(folder.glob(pattern)):
            if checkpoint and path.name == BEST:  # a training run that was killed before its first checkpoint
                continue
            raise DataError(f"{folder} already has a model: {path.name}.", "Use another folder, or delete this one.")


def check_output_file(file: Path, base: Path) -> None:
    """Raise DataError if a GGUF file would replace anything but a GGUF adapter."""
    _check_not_input(file, base, None)
    if not file.exists():
        return
    try:
        is_adapter = read_header(file).get("general.type") == "adapter"
    except DamagedModelError:
        is_adapter = False
    if not is_adapter:
        raise DataError(f"{file} exists and is not a GGUF adapter.", "Use another file name, or delete it.")


def _check_not_input(out: Path, base: Path, adapter: Path | None) -> None:
    if base.resolve() in out.resolve().parents:
        raise DataError(f"{out} is inside the base model, {base}.", "Use another path.")
    for name, path in (("base", base), ("adapter", adapter)):
        if path and (out.resolve() == path.resolve() or (out.exists() and path.exists() and out.samefile(path))):
            raise DataError(f"{out} is the {name} itself.", "Use another path.")
