"""EPUB: the chapters in reading order, each parsed as HTML."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from urllib.parse import unquote

from ragfm.core.errors import ParseError
from ragfm.parsing.own.office.office_xml import attribute, child, children, core_metadata, descendants, parse_xml
from ragfm.parsing.own.office.zip_container import open_zip, read_entry
from ragfm.parsing.own.web.html import read_html
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText
from ragfm.parsing.text_encoding import decode

_HTML = frozenset({"application/xhtml+xml", "text/html"})
# Algorithms that obfuscate fonts only.
_FONT_ALGORITHMS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read_epub(data: bytes, name: str, *, images: bool = False) -> ParsedText:
    """Return all chapters, and with `images` the pictures in them as figures.

    Metadata: `title`, `author`, `modified`, `lang`. Raises ParseError.
    """
    archive = open_zip(data, name)
    encryption = read_entry(archive, "META-INF/encryption.xml", name)
    if encryption is not None:
        methods = descendants(parse_xml(encryption, name), "EncryptionMethod")
        if any(attribute(method, "Algorithm") not in _FONT_ALGORITHMS for method in methods):
            raise ParseError(f"{name} is encrypted: only the device or account that it was sold to can read it.")
    container = read_entry(archive, "META-INF/container.xml", name)
    root_file = next(descendants(parse_xml(container, name), "rootfile"), None) if container is not None else None
    path = attribute(root_file, "full-path")
    package = read_entry(archive, path, name) if path else None
    if package is None:
        raise ParseError(f"{name} is damaged: its container names no book.")
    book = parse_xml(package, name, dtd=True)

    # The spine is the reading order; the table of contents is not part of the text.
    chapters = {
        attribute(item, "id"): unquote(attribute(item, "href"))
        for item in children(child(book, "manifest"), "item")
        if attribute(item, "media-type") in _HTML and "nav" not in attribute(item, "properties").split()
    }
    folder = posixpath.dirname(path)
    files = {posixpath.normpath(posixpath.join(folder, chapter)) for chapter in chapters.values()}
    builder = MarkdownBuilder()
    for entry in children(child(book, "spine"), "itemref"):
        chapter = chapters.get(attribute(entry, "idref"))
        if chapter is None:
            continue
        chapter_path = posixpath.normpath(posixpath.join(folder, chapter))

        def resolve(address: str, chapter_path: str = chapter_path) -> str:
            file = unquote(address.partition("#")[0])
            return posixpath.normpath(posixpath.join(posixpath.dirname(chapter_path), file)) if file else chapter_path

        def load(address: str, resolve: Callable[[str], str] = resolve) -> bytes | None:
            return read_entry(archive, resolve(address), name)

        def is_chapter(address: str, resolve: Callable[[str], str] = resolve) -> bool:
            return resolve(address) in files

        page = read_entry(archive, chapter_path, name)
        text = decode(page) if page is not None else None
        if text is not None:
            builder.add_parsed(read_html(text, name, images=images, load=load, is_chapter=is_chapter))
    metadata = core_metadata(child(book, "metadata"))
    language = child(book, "metadata", "language")
    if language is not None and (text := (language.text or "").strip()):
        metadata["lang"] = text
    return builder.build(metadata)
