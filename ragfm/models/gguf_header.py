"""What a GGUF file says of itself, read without llama.cpp, which trusts its numbers.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ragfm.core.errors import DamagedModelError, ModelNotFoundError

__all__ = ["Header", "check_gguf", "kv_bytes", "read_header"]

Value: TypeAlias = str | int | float | bool | None

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_VERSIONS = (2, 3)


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata of one value each, lists left out; and how many tensors there are, by the number of their type."""

    metadata: dict[str, Value]
    types: dict[int, int]


def check_gguf(path: Path) -> None:
    """Raises ModelNotFoundError where there is no file, DamagedModelError where it does not begin as a GGUF file."""
    if not path.is_file():
        raise ModelNotFoundError(f"There is no file {path}.", "Check the path.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise DamagedModelError(f"{path} is not a GGUF file: it begins with {magic!r}.", "Get the file again.")


def read_header(path: Path) -> Header:
    """Check all counts, lengths and places against the file, and give what it says. Raises as `check_gguf` does."""
    check_gguf(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except (ValueError, struct.error) as error:
            raise DamagedModelError(f"{path} is damaged: {error}.", "Get the file again.") from error


def kv_bytes(path: Path, tokens: int) -> int:
    """What llama.cpp keeps of a request of so many tokens, at most what the model was trained for, as it usually does.

    For each token and layer that is a key and a value of two bytes a number. Where the file does not say in plain
    numbers how many there are, it is rather too much.
    """
    said = read_header(path).metadata
    kind = said.get("general.architecture")

    def number(name: str, default: int = 0) -> int:
        value = said.get(f"{kind}.{name}")
        return value if isinstance(value, int) else default

    heads = number("attention.head_count", 1) or 1
    each = number("embedding_length") // heads
    of_token = number("attention.key_length", each) + number("attention.value_length", each)
    tokens = min(tokens, number("context_length", tokens))
    return 2 * tokens * number("block_count") * number("attention.head_count_kv", heads) * of_token


class _Reader:
    """Goes through the header once; ValueError or struct.error where a number can't be true."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._size = data, len(data)
        self._at = 4

    def header(self) -> Header:
        version, tensors, values = self._take("<I"), self._take("<Q"), self._take("<Q")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, and {_VERSIONS[-1]} is the newest")
        # The shortest of each has so many bytes.
        self._expect(int(tensors) * 24 + int(values) * 13, "tensors and values")
        metadata: dict[str, Value] = {}
        for _ in range(int(values)):
            key = self._string()
            if key in metadata:
                raise ValueError(f"it has the key {key!r} twice")
            metadata[key] = self._value(int(self._take("<I")))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}")
        return Header(metadata, self._tensors(int(tensors), alignment))

    def _tensors(self, count: int, alignment: int) -> dict[int, int]:
        types: dict[int, int] = {}
        names: set[str] = set()
        farthest = 0
        for _ in range(count):
            names.add(self._string())
            dimensions = int(self._take("<I"))
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            elements = 1
            for _ in range(dimensions):
                elements *= int(self._take("<Q"))
            kind, offset = int(self._take("<I")), int(self._take("<Q"))
            types[kind] = types.get(kind, 0) + 1
            # An element has a bit at least; llama.cpp knows the types' sizes and checks them.
            farthest = max(farthest, offset + elements // 8)
            if offset % alignment or elements < 1:
                raise ValueError(f"a tensor of {elements} elements lies at {offset}")
        if len(names) < count:
            raise ValueError("two tensors have the same name")
        data = -(-self._at // alignment) * alignment
        if count and data + farthest > self._size:
            raise ValueError(f"its tensors end at byte {data + farthest} or later, and the file at {self._size}")
        return types

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_scalar(kind))
        item, count = int(self._take("<I")), int(self._take("<Q"))
        if item == _ARRAY:
            raise ValueError("it has lists of lists")
        if item == _STRING:
            self._expect(8 * count, "strings")
            for _ in range(count):
                self._skip(self._length())
        else:
            self._skip(count * struct.calcsize(_scalar(item)))
        return None

    def _string(self) -> str:
        length = self._length()
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode("utf-8", errors="replace")

    def _length(self) -> int:
        return int(self._take("<Q"))

    def _take(self, form: str) -> int | float | bool:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value  # type: ignore[no-any-return]

    def _skip(self, count: int) -> None:
        self._expect(count, "bytes")
        self._at += count

    def _expect(self, count: int, what: str) -> None:
        if count > self._size - self._at:
            raise ValueError(f"it announces {count} bytes of {what} at byte {self._at}, and ends at {self._size}")


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value has the unknown type {kind}")
    return _SCALARS[kind]
