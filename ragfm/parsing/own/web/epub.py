"""EPUB: the chapters in the order of reading, each as the HTML that it is."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from ragfm.core.errors import ParseError
from ragfm.parsing.media_types import decode
from ragfm.parsing.own.office.office_xml import Node, attribute, child, children, core_metadata, descendants, parse_xml
from ragfm.parsing.own.office.zip_container import open_zip, read_entry
from ragfm.parsing.own.web.html import read_html
from ragfm.parsing.rendering import Parsed, Rendering

_HTML = frozenset({"application/xhtml+xml", "text/html"})
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")  # fonts alone are scrambled


def read_epub(data: bytes, name: str) -> Parsed:
    """All chapters. Metadata: `title`, `author`, `modified`, `lang`. Raises ParseError."""
    archive = open_zip(data, name)
    encryption = read_entry(archive, "META-INF/encryption.xml", name)
    if encryption is not None:
        methods = descendants(parse_xml(encryption, name), "EncryptionMethod")
        if any(attribute(method, "Algorithm") not in _FONTS for method in methods):
            raise ParseError(f"{name} is protected: it is encrypted for one reader alone.")
    container = read_entry(archive, "META-INF/container.xml", name)
    root = next(descendants(parse_xml(container, name), "rootfile"), None) if container is not None else None
    path = attribute(root, "full-path") if root is not None else ""
    package = read_entry(archive, path, name) if path else None
    if package is None:
        raise ParseError(f"{name} is damaged: it says of no book where it is.")
    book = parse_xml(package, name, dtd=True)
    rendering = Rendering()
    for chapter in _chapters(book):
        page = read_entry(archive, posixpath.normpath(posixpath.join(posixpath.dirname(path), chapter)), name)
        text = decode(page) if page is not None else None
        if text is not None:
            rendering.append(read_html(text, name))
    metadata = core_metadata(child(book, "metadata"))
    language = child(book, "metadata", "language")
    if language is not None and (language.text or "").strip():
        metadata["lang"] = (language.text or "").strip()
    return rendering.finish(metadata)


def _chapters(book: Node) -> list[str]:
    """The paths of what is read one after the other; the table of contents is none of it."""
    items = {
        attribute(item, "id"): unquote(attribute(item, "href"))
        for item in children(child(book, "manifest"), "item")
        if attribute(item, "media-type") in _HTML and "nav" not in attribute(item, "properties").split()
    }
    spine = (attribute(entry, "idref") for entry in children(child(book, "spine"), "itemref"))
    return [items[entry] for entry in spine if entry in items]
