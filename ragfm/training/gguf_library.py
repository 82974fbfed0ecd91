"""The library `gguf`, which is part of the extra `train`."""

from ragfm.core.errors import MissingExtraError

try:
    import gguf
except ImportError as error:
    raise MissingExtraError(
        "Training and export need gguf.", "Run `pip install -e '.[train]'` in ragfm's source folder."
    ) from error

__all__ = ["gguf"]
