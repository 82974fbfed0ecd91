"""What documents of Office programs have in common: parts in an archive, relations between them, XML."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Final, TypeAlias
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from ragfm.core.errors import ParseError
from ragfm.core.types import Scalar
from ragfm.parsing.own.office.zip_container import open_zip, read_entry

Node: TypeAlias = Element

_STRICT: Final = (b"http://purl.oclc.org/ooxml/", b"http://schemas.openxmlformats.org/")
_MAIN = "officeDocument"
_CORE = "core-properties"


def parse_xml(data: bytes, name: str, *, dtd: bool = False, encoding: str | None = None) -> Node:
    """The root of an XML document. What an XML can do to others is refused: entities, and all that lies elsewhere.

    `encoding` goes before the one that the document names.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError as XmlError
    from defusedxml.ElementTree import XMLParser

    try:
        parser = XMLParser(encoding=encoding, forbid_dtd=not dtd, forbid_entities=True, forbid_external=True)
        parser.feed(data)
        root: Node = parser.close()
    except DefusedXmlException as error:
        raise ParseError(f"{name} declares entities or refers to other files, as no harmless document does.") from error
    except (XmlError, LookupError, ValueError) as error:
        raise ParseError(f"{name} is damaged: it has XML that can't be read ({error}).") from error
    return root


def local(node: Node) -> str:
    """The name of an element without its namespace; empty for what is no element."""
    tag = node.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def attribute(node: Node, name: str) -> str:
    """The value of an attribute, whatever its namespace; empty where there is none."""
    for key, value in node.attrib.items():
        if key == name or key.endswith(f"}}{name}"):
            return value
    return ""


def child(node: Node | None, *path: str) -> Node | None:
    """The first element on a path of names."""
    for name in path:
        if node is None:
            return None
        node = next((below for below in node if local(below) == name), None)
    return node


def children(node: Node | None, name: str) -> Iterator[Node]:
    """The elements of a name directly below."""
    for below in node if node is not None else ():
        if local(below) == name:
            yield below


def descendants(node: Node | None, name: str) -> Iterator[Node]:
    """The elements of a name at any depth."""
    for below in node.iter() if node is not None else ():
        if local(below) == name:
            yield below


class Package:
    """An archive of parts as Microsoft's formats have it, Strict or not."""

    def __init__(self, data: bytes, name: str) -> None:
        """Raises ParseError for a damaged archive, and for one that is a bomb."""
        self.name = name
        self._archive = open_zip(data, name)

    def xml(self, path: str) -> Node | None:
        """The root of a part; None where there is no such part."""
        data = self.data(path)
        return None if data is None else parse_xml(data.replace(*_STRICT), self.name)

    def data(self, path: str) -> bytes | None:
        """The bytes of a part; None where there is no such part."""
        return read_entry(self._archive, path, self.name)

    def related(self, path: str) -> dict[str, tuple[str, str]]:
        """What a part refers to by id: the last part of the relation's type, and the other part's path or address."""
        folder, file = posixpath.split(path)
        found = {}
        for relation in children(self.xml(posixpath.join(folder, "_rels", f"{file}.rels")), "Relationship"):
            target = relation.get("Target", "")
            if relation.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, unquote(target))).lstrip("/")
            found[relation.get("Id", "")] = (relation.get("Type", "").rsplit("/", 1)[-1], target)
        return found

    def part(self, path: str, kind: str) -> str:
        """The path of the first part to which another one has a relation of a type; empty where there is none."""
        return next((target for found, target in self.related(path).values() if found == kind), "")

    def main(self) -> tuple[str, Node]:
        """Path and root of the part that the package is for. Raises ParseError where there is none."""
        path = self.part("", _MAIN)
        root = self.xml(path) if path else None
        if root is None:
            raise ParseError(f"{self.name} is damaged: it has no main part.")
        return path, root

    def metadata(self) -> dict[str, Scalar]:
        """Title, author and date of the last change, as far as they are given."""
        path = self.part("", _CORE)
        return core_metadata(self.xml(path) if path else None)


_CORE_NAMES = {
    "title": "title",
    "creator": "author",
    "initial-creator": "author",
    "modified": "modified",
    "date": "modified",
}
_DEFAULTS = frozenset({"Word Document", "PowerPoint Presentation", "PowerPoint-Präsentation", "python-docx"})


def core_metadata(root: Node | None) -> dict[str, Scalar]:
    """Title, author and date of the last change from Dublin Core elements."""
    found: dict[str, Scalar] = {}
    for node in root.iter() if root is not None else ():
        key = _CORE_NAMES.get(local(node))
        text = " ".join((node.text or "").split())
        if key and text and text not in _DEFAULTS:
            found.setdefault(key, text)
    return found
