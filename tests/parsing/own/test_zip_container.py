from __future__ import annotations

import io
import zipfile

import pytest

from ragfm.core.errors import ParseError
from ragfm.parsing.own.office import zip_container
from ragfm.parsing.own.office.zip_container import open_zip, read_entry


def zipped(**parts: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return stream.getvalue()


def test_an_archive_is_read() -> None:
    archive = open_zip(zipped(a=b"one", b=b"two"), "a.zip")
    assert [read_entry(archive, name, "a.zip") for name in ("a", "b", "c")] == [b"one", b"two", None]


def test_bombs_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_container, "FREE_RATIO", 1 << 20)
    with pytest.raises(ParseError, match=r"a\.zip would unpack to .* times its size"):
        open_zip(zipped(a=bytes(8 << 20)), "a.zip")
    monkeypatch.setattr(zip_container, "MAX_UNPACKED", 1 << 20)
    with pytest.raises(ParseError, match="would unpack to 8 MiB"):
        open_zip(zipped(a=bytes(8 << 20)), "a.zip")
    monkeypatch.setattr(zip_container, "MAX_ENTRIES", 3)
    with pytest.raises(ParseError, match="has 4 entries"):
        open_zip(zipped(a=b"", b=b"", c=b"", d=b""), "a.zip")


def test_entries_that_overlap_are_refused() -> None:
    whole = zipped(a=b"the same bytes", b=b"the same bytes")
    end = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", end + 1)
    offset = second + 42
    overlapping = whole[:offset] + bytes(4) + whole[offset + 4 :]  # the second begins where the first does
    with pytest.raises(ParseError, match="overlap"):
        open_zip(overlapping, "a.zip")


def test_damaged_archives() -> None:
    whole = zipped(a=b"abc" * 1000)
    torn = whole[:40] + b"\xff\xff\xff" + whole[43:]
    with pytest.raises(ParseError, match="cannot be unpacked"):
        read_entry(open_zip(torn, "a.zip"), "a", "a.zip")
    with pytest.raises(ParseError, match="damaged archive"):
        open_zip(whole[:20], "a.zip")
