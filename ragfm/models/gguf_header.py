"""GGUF headers, read and validated without llama.cpp, which trusts the numbers in them.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TypeAlias

from ragfm.core.errors import DamagedModelError, ModelNotFoundError

Value: TypeAlias = str | int | float | bool | None

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_VERSIONS = (2, 3)
_MIN_TENSOR_BYTES, _MIN_VALUE_BYTES = 24, 13
"""Size of the shortest possible tensor description and metadata entry."""


def check_gguf(path: Path) -> None:
    """Raise ModelNotFoundError if the file does not exist, DamagedModelError if it does not begin with `GGUF`."""
    if not path.is_file():
        raise ModelNotFoundError(f"The file '{path}' does not exist.", "Check the path.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise DamagedModelError(f"'{path}' is not a GGUF file: it begins with {magic!r}.", "Download the file again.")


def read_header(path: Path) -> dict[str, Value]:
    """Read the metadata, with None for lists, and check all counts, lengths and offsets of the header against the file.

    Raises as `check_gguf` does.
    """
    check_gguf(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _HeaderParser(data).parse()
        except (ValueError, struct.error) as error:
            raise DamagedModelError(f"'{path}' is damaged: {error}.", "Download the file again.") from error


def kv_cache_bytes(path: Path, tokens: int) -> int:
    """Size of llama.cpp's KV cache for a request of `tokens` tokens, or of the model's own window if that is shorter.

    The cache has one key and one value per token and layer, two bytes per number. The result is an upper bound if the
    file has lists instead of single numbers.
    """
    metadata = read_header(path)
    architecture = metadata.get("general.architecture")

    def number(name: str, default: int = 0) -> int:
        value = metadata.get(f"{architecture}.{name}")
        return value if isinstance(value, int) else default

    heads = number("attention.head_count", 1) or 1
    head_size = number("embedding_length") // heads
    numbers_per_head = number("attention.key_length", head_size) + number("attention.value_length", head_size)
    tokens = min(tokens, number("context_length", tokens))
    return 2 * tokens * number("block_count") * number("attention.head_count_kv", heads) * numbers_per_head


class _HeaderParser:
    """Parses the header in one pass. Raises ValueError or struct.error for numbers that cannot be true."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._size = data, len(data)
        self._position = 4

    def parse(self) -> dict[str, Value]:
        version, tensors, values = self._number("<I"), self._integer("<Q"), self._integer("<Q")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, and the newest known one is {_VERSIONS[-1]}")
        self._require(tensors * _MIN_TENSOR_BYTES + values * _MIN_VALUE_BYTES, "tensors and values")
        metadata: dict[str, Value] = {}
        for _ in range(values):
            key = self._string()
            if key in metadata:
                raise ValueError(f"it has the key {key!r} twice")
            metadata[key] = self._value(self._integer("<I"))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}")
        names: set[str] = set()
        end = 0
        for _ in range(tensors):
            names.add(self._string())
            dimensions = self._integer("<I")
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            elements = 1
            for _ in range(dimensions):
                elements *= self._integer("<Q")
            self._integer("<I")  # the type
            offset = self._integer("<Q")
            # An element takes one bit or more. llama.cpp knows the exact sizes of the types, and checks them.
            end = max(end, offset + elements // 8)
            if offset % alignment or elements < 1:
                raise ValueError(f"a tensor of {elements} elements is at offset {offset}")
        if len(names) < tensors:
            raise ValueError("two tensors have the same name")
        data_start = -(-self._position // alignment) * alignment
        if tensors and data_start + end > self._size:
            raise ValueError(f"its tensors end at byte {data_start + end} or later, and the file at {self._size}")
        return metadata

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_scalar_format(kind))
        item_kind, count = self._integer("<I"), self._integer("<Q")
        if item_kind == _ARRAY:
            raise ValueError("it has nested lists")
        if item_kind == _STRING:
            self._require(8 * count, "strings")
            for _ in range(count):
                self._skip(self._integer("<Q"))
        else:
            self._skip(count * struct.calcsize(_scalar_format(item_kind)))
        return None

    def _string(self) -> str:
        length = self._integer("<Q")
        start = self._position
        self._skip(length)
        return self._data[start : self._position].decode("utf-8", errors="replace")

    def _integer(self, number_format: str) -> int:
        return int(self._number(number_format))

    def _number(self, number_format: str) -> int | float | bool:
        (value,) = struct.unpack_from(number_format, self._data, self._position)
        self._position += struct.calcsize(number_format)
        return value  # type: ignore[no-any-return]

    def _skip(self, count: int) -> None:
        self._require(count, "bytes")
        self._position += count

    def _require(self, count: int, content: str) -> None:
        if count > self._size - self._position:
            raise ValueError(
                f"it announces {count} bytes of {content} at byte {self._position}, and ends at {self._size}"
            )


def _scalar_format(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value has the unknown type {kind}")
    return _SCALARS[kind]
