"""Images for a GGUF model: llama.cpp's multimodal library (mtmd) with a projector file (`mmproj`).

The library cuts a prompt into chunks of text and of image tokens, and evaluates them in a slot of the context. The
projector is loaded with the first image. It computes only in ragfm's own threads, as all of llama.cpp does.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragfm.core.errors import ConfigError, RagfmError, UnsupportedError
from ragfm.core.types import ImagePart
from ragfm.generation.readers.engine import ImagePrompt
from ragfm.generation.readers.images import prepare_image
from ragfm.models.gguf_header import check_gguf
from ragfm.models.llama_library import free_on_collection, last_error, load_projector, mtmd_library

_log = logging.getLogger(__name__)


def find_projector(model: Path, name: str | None) -> Path | None:
    """The projector file of a model: `name`, else the only `mmproj*.gguf` next to the model; None for `none`.

    Raises ModelNotFoundError or DamagedModelError for a file that cannot be used.
    """
    if name == "none":
        return None
    if name:
        path = Path(name).expanduser()
        check_gguf(path)
        return path
    found = sorted(path for path in model.parent.glob("mmproj*.gguf") if path != model)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        _log.info(
            "There are several projectors next to %s, so none is used: %s. Set the option projector.", model, names
        )
    return found[0] if len(found) == 1 else None


class LlamaProjector:
    """A loaded projector. `prompt` may be called by any thread, `evaluate` by the evaluation thread."""

    def __init__(self, path: Path, model: Any, model_path: Path, threads: int) -> None:
        self.path = path
        self._library = mtmd_library()
        self._handle = load_projector(path, model, model_path, threads)
        free_on_collection(self, self._library.mtmd_free, self._handle)
        if not self._library.mtmd_support_vision(self._handle):
            raise ConfigError(
                f"The projector '{path}' has no vision encoder.", "Set the option projector to another file."
            )

    def prompt(self, texts: Sequence[str], images: Sequence[ImagePart], side: int) -> ImagePrompt:
        """A prompt of texts with an image between each two of them. Raises UnsupportedError."""
        library = self._library
        parts: list[Any] = []
        bitmaps: list[Any] = []
        try:
            for index, text in enumerate(texts):
                if data := text.encode("utf-8", "replace"):
                    input_text = library.mtmd_input_text(data, len(data), False, True)
                    parts.append(library.mtmd_input_part(text=ctypes.pointer(input_text)))
                if index < len(images):
                    image = prepare_image(images[index], side)
                    pixels = (ctypes.c_uint8 * len(image.data)).from_buffer_copy(image.data)
                    bitmaps.append(library.mtmd_bitmap_init(image.width, image.height, pixels))
                    parts.append(library.mtmd_input_part(bitmap=bitmaps[-1]))
            chunks = ImageChunks(self, library.mtmd_input_chunks_init())
            pointers = (ctypes.POINTER(library.mtmd_input_part) * len(parts))(*map(ctypes.pointer, parts))
            code = library.mtmd_tokenize_from_parts(self._handle, chunks.handle, pointers, len(parts), False)
        finally:
            for bitmap in bitmaps:
                library.mtmd_bitmap_free(bitmap)
        if code:
            raise UnsupportedError(f"llama.cpp cannot process these images with '{self.path}': {last_error()}.")
        return ImagePrompt(int(library.mtmd_helper_get_n_tokens(chunks.handle)), chunks)

    def evaluate(self, context: Any, chunks: ImageChunks, slot: int, batch: int) -> int:
        """Evaluate a prompt in an empty slot of a context; returns the next position.

        `batch` is the context's number of tokens per evaluation. Raises RagfmError.
        """
        library = self._library
        for index in range(library.mtmd_input_chunks_size(chunks.handle)):
            chunk = library.mtmd_input_chunks_get(chunks.handle, index)
            is_image = library.mtmd_input_chunk_get_type(chunk) == library.MTMD_INPUT_CHUNK_TYPE_IMAGE
            tokens = library.mtmd_input_chunk_get_n_tokens(chunk)
            if is_image and tokens > batch and library.mtmd_decode_use_non_causal(self._handle, chunk):
                # llama.cpp would abort: such an image must be evaluated at once
                raise UnsupportedError(
                    f"An image has {tokens} tokens, and this model needs all in one batch of {batch}.",
                    "Set a smaller image_side.",
                )
        position = ctypes.c_int32(0)
        if code := library.mtmd_helper_eval_chunks(
            self._handle, context, chunks.handle, 0, slot, batch, True, ctypes.byref(position)
        ):
            raise RagfmError(f"llama.cpp failed to evaluate a prompt with images (code {code}): {last_error()}.")
        return position.value


class ImageChunks:
    """The chunks of a prompt. They keep the projector loaded."""

    def __init__(self, projector: LlamaProjector, handle: Any) -> None:
        self.projector, self.handle = projector, handle
        free_on_collection(self, mtmd_library().mtmd_input_chunks_free, handle)
