"""Generate hostile files: small files that unpack to huge ones, never end, or refer to files outside."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

_TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/><Override PartName="/word/document.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
)
_RELATIONS = (
    '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="r1" Target="word/document.xml" Type='
    '"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"/></Relationships>'
)
_BODY = (
    '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>{}'
    "</w:t></w:r></w:p></w:body></w:document>"
)


def write_bombs(folder: Path, canary: Path) -> None:
    """Write one file for each attack; the content of `canary` must not get into any document."""
    for name, data in {**archives(), **markup(canary), **pdfs(), **images_and_pickles()}.items():
        (folder / name).write_bytes(data)


def archives() -> dict[str, bytes]:
    """Archives, and documents that are archives."""
    zeros = b"0" * (1 << 20)
    huge = _zip({"[Content_Types].xml": _TYPES, "_rels/.rels": _RELATIONS})
    with zipfile.ZipFile(huge, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as entry:
        for _ in range(300):
            entry.write(zeros)
    nested = b"deep down"
    for level in range(40):
        nested = _zip({f"{level}.zip" if level else "deep.txt": nested}).getvalue()
    escape = io.BytesIO()
    with tarfile.open(fileobj=escape, mode="w:gz") as tar:
        for name in ("../outside.txt", "/etc/outside.txt"):
            tar.addfile(_entry(name, 4), io.BytesIO(b"text"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            link = _entry(f"link-{ord(kind)}.txt", 0)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    long_gz = io.BytesIO()
    with tarfile.open(fileobj=long_gz, mode="w:gz", compresslevel=9) as tar:
        tar.addfile(_entry("zeros.txt", 100 << 20), io.BufferedReader(_Zeros(100 << 20)))
    evil_entries: dict[str, str | bytes] = {
        "[Content_Types].xml": _TYPES,
        "_rels/.rels": _RELATIONS,
        "word/evil.pkl": _pickle(),
        "word/document.xml": _BODY.format("Nobody unpickles."),
    }
    return {
        "huge.docx": huge.getvalue(),
        "many.zip": _zip({f"{number}.txt": "x" for number in range(4000)}).getvalue(),
        "nested.zip": nested,
        "overlap.zip": overlapping(2000, 1 << 20),
        "small-overlap.zip": overlapping(20, 1 << 16),
        "escape.tar.gz": escape.getvalue(),
        "escape.zip": _zip({"../up.txt": "text", "/etc/up.txt": "text", "a\\..\\b.txt": "text"}).getvalue(),
        "zeros.tar.gz": long_gz.getvalue(),
        "lying.zip": _zip_with_false_size(),
        "pickle.docx": _zip(evil_entries).getvalue(),
        "cut.zip": _zip({f"{number}.txt": "text" for number in range(9)}).getvalue()[:200],
    }


def markup(canary: Path) -> dict[str, bytes]:
    """XML that expands or reads files, and deeply nested HTML and JSON."""
    laughs = '<!DOCTYPE x [<!ENTITY a0 "ha">' + "".join(
        f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 12)
    )
    outside = f'<!DOCTYPE x [<!ENTITY a11 SYSTEM "{canary.as_uri()}">'
    files = {}
    for name, begin in (("laughs", laughs + "]>"), ("outside", outside + "]>")):
        body = begin + _BODY.format("&a11;")
        files[f"{name}.docx"] = _zip(
            {"[Content_Types].xml": _TYPES, "_rels/.rels": _RELATIONS, "word/document.xml": body}
        ).getvalue()
        files[f"{name}.xml"] = f"{begin}<x>&a11;</x>".encode()
        files[f"{name}.svg"] = f'{begin}<svg xmlns="http://www.w3.org/2000/svg"><text>&a11;</text></svg>'.encode()
        files[f"{name}.xhtml"] = f"{begin}<html><body><p>&a11;</p></body></html>".encode()
    include = f'<x xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="{canary.as_uri()}" parse="text"/></x>'
    return files | {
        "include.xml": include.encode(),
        "frame.html": f'<html><body>Frame<iframe src="{canary.as_uri()}"></iframe></body></html>'.encode(),
        "deep.html": b"<html><body>" + b"<div>" * 300_000 + b"deep",
        "deep.xml": b"<a>" * 300_000,
        "deep.json": b"[" * 200_000 + b"]" * 200_000,
        "keys.json": b'{"' + b"k" * 30_000 + b'": [' + b"[1]," * 8000 + b"[1]]}",
        "line.md": b"word " * (1 << 20),
        "quotes.md": b">" * (1 << 20) + b"\n" + b"> a\n" * 50_000,
        "spans.html": b"<table>" + b'<tr><td colspan="1000" rowspan="65534">x</td></tr>' * 2000,
    }


def pdfs() -> dict[str, bytes]:
    """PDFs with endless pages, or pages that unpack to gigabytes."""
    bomb = zlib.compress(b"(x) Tj " * (20 << 20), 9)
    twice = zlib.compress(zlib.compress(b"\0" * (1 << 30), 9), 9)
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>"

    def pages(kids: bytes, count: int) -> bytes:
        return b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count)

    def stream(data: bytes, filters: bytes = b"/FlateDecode") -> bytes:
        return b"<</Length %d/Filter[%s]>>stream\n%s\nendstream" % (len(data), filters, data)

    return {
        "count.pdf": _pdf(pages(b"3 0 R", 2_000_000_000), page, stream(bomb[:0])),
        "loop.pdf": _pdf(pages(b"2 0 R 2 0 R 3 0 R", 50_000), page, stream(b"")),
        "kids.pdf": _pdf(pages(b"3 0 R " * 100_000, 100_000), page, stream(zlib.compress(b""))),
        "text.pdf": _pdf(pages(b"3 0 R", 1), page, stream(bomb)),
        "twice.pdf": _pdf(pages(b"3 0 R", 1), page, stream(twice, b"/FlateDecode/FlateDecode")),
    }


def images_and_pickles() -> dict[str, bytes]:
    """Images of huge size, and pickles."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return {
        "huge.png": png,
        "huge.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
        "huge.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "pickle.md": _pickle(),
        "pickle.npy": b"\x93NUMPY\x01\0v\0" + b"{'descr': '|O', 'shape': (1,)}".ljust(117) + b"\n" + _pickle(),
    }


def overlapping(entries: int, size: int) -> bytes:
    """A zip in which the data of each entry contains all following entries: a few KB that unpack to gigabytes."""
    kernel = zlib.compressobj(9, wbits=-15)
    body, directory = kernel.compress(b"0" * size) + kernel.flush(), []
    for number in range(entries):
        name = b"%d.txt" % number
        header = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, len(body), size, len(name), 0) + name
        directory.append((name, len(body), size, len(header) + len(body)))
        quote = struct.pack("<BHH", 0, len(header), ~len(header) & 0xFFFF)  # the header as an uncompressed block
        body, size = quote + header + body, size + len(header)
    start = len(body)
    central = b""
    for name, length, unpacked, from_end in directory:
        sizes = (0, length, unpacked, len(name), 0, 0, 0, 0, 0, start - from_end)
        central += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, *sizes) + name
    return body + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, entries, entries, len(central), start, 0)


def _zip_with_false_size() -> bytes:
    """A zip whose headers declare a size that is too small."""
    data = bytearray(_zip({"lying.txt": b"0" * (50 << 20)}).getvalue())
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        begin = data.rindex(signature) + offset
        data[begin : begin + 4] = struct.pack("<I", 10)
    return bytes(data)


def _zip(entries: dict[str, str | bytes] | dict[str, str] | dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file


def _entry(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


class _Zeros(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        count = min(len(buffer), self._left)
        buffer[:count] = bytes(count)
        self._left -= count
        return count


def _pdf(*objects: bytes) -> bytes:
    """A PDF of a catalogue and these objects."""
    data, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate((b"<</Type/Catalog/Pages 2 0 R>>", *objects), 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(offsets) + 1
    trailer = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (count, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n%s" % (count, table) + trailer


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch unpickled",)


def _pickle() -> bytes:
    return pickle.dumps(_Evil())
