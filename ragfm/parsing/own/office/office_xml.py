"""What Office formats share: XML, parts in an archive, and the relations between parts."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from ragfm.core.errors import ParseError
from ragfm.core.types import Scalar
from ragfm.parsing.own.office.zip_container import open_zip, read_entry

Node: TypeAlias = Element

# Namespace prefixes of Strict OOXML and of the usual one.
_STRICT: Final = (b"http://purl.oclc.org/ooxml/", b"http://schemas.openxmlformats.org/")
_METADATA_KEYS = {
    "title": "title",
    "creator": "author",
    "initial-creator": "author",
    "modified": "modified",
    "date": "modified",
}
_MAX_COLUMNS = 100  # of one cell of a table
_DEFAULT_VALUES = frozenset({"Word Document", "PowerPoint Presentation", "PowerPoint-Präsentation", "python-docx"})


def parse_xml(data: bytes, name: str, *, dtd: bool = False, encoding: str | None = None) -> Node:
    """Return the root of an XML document; `encoding` overrides the one that the document declares.

    Raises ParseError for damaged XML, for entity declarations, and for references to other files.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError as XmlError
    from defusedxml.ElementTree import XMLParser

    try:
        parser = XMLParser(encoding=encoding, forbid_dtd=not dtd, forbid_entities=True, forbid_external=True)
        parser.feed(data)
        root: Node = parser.close()
    except DefusedXmlException as error:
        raise ParseError(f"{name} is refused: it declares entities or refers to other files.") from error
    except (XmlError, LookupError, ValueError) as error:
        raise ParseError(f"{name} is damaged: it has XML that cannot be read ({error}).") from error
    return root


def local_name(node: Node) -> str:
    """The name of an element without its namespace; empty for a comment or a processing instruction."""
    tag = node.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def attribute(node: Node | None, name: str) -> str:
    """The value of an attribute in any namespace; empty where there is none."""
    for key, value in node.attrib.items() if node is not None else ():
        if key == name or key.endswith(f"}}{name}"):
            return value
    return ""


def column_count(node: Node | None, name: str) -> int:
    """The number of table columns in an attribute, at most 100; 0 where there is none."""
    digits = attribute(node, name)
    return min(int(digits), _MAX_COLUMNS) if digits.isdecimal() and len(digits) < 6 else 0


def child(node: Node | None, *path: str) -> Node | None:
    """The first element on a path of names; None where there is none."""
    for name in path:
        if node is None:
            return None
        node = next((below for below in node if local_name(below) == name), None)
    return node


def children(node: Node | None, name: str) -> Iterator[Node]:
    """The elements of a name directly below a node."""
    for below in node if node is not None else ():
        if local_name(below) == name:
            yield below


def descendants(node: Node | None, name: str) -> Iterator[Node]:
    """The elements of a name at any depth, including the node itself."""
    for below in node.iter() if node is not None else ():
        if local_name(below) == name:
            yield below


class Relation(NamedTuple):
    """A relation of a part: the last path segment of its type, and the path or address of its target."""

    kind: str
    target: str


class Package:
    """An archive of parts in one of Microsoft's formats, Strict or not."""

    def __init__(self, data: bytes, name: str) -> None:
        """Raises ParseError for a damaged archive or a decompression bomb."""
        self.name = name
        self._archive = open_zip(data, name)

    def read(self, path: str) -> bytes | None:
        """The bytes of a part; None where it does not exist."""
        return read_entry(self._archive, path, self.name)

    def xml(self, path: str) -> Node | None:
        """The root of an XML part; None where it does not exist, and for an empty path."""
        data = self.read(path) if path else None
        return None if data is None else parse_xml(data.replace(*_STRICT), self.name)

    def relations(self, path: str) -> dict[str, Relation]:
        """The relations of a part, by id."""
        folder, file = posixpath.split(path)
        relations = {}
        for node in children(self.xml(posixpath.join(folder, "_rels", f"{file}.rels")), "Relationship"):
            target = node.get("Target", "")
            if node.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, unquote(target))).lstrip("/")
            relations[node.get("Id", "")] = Relation(node.get("Type", "").rsplit("/", 1)[-1], target)
        return relations

    def related_part(self, path: str, kind: str) -> str:
        """The path of the first part that a part has a relation of a kind to; empty where there is none."""
        return next((relation.target for relation in self.relations(path).values() if relation.kind == kind), "")

    def main_part(self) -> tuple[str, Node]:
        """Path and root of the main part. Raises ParseError where there is none."""
        path = self.related_part("", "officeDocument")
        root = self.xml(path)
        if root is None:
            raise ParseError(f"{self.name} is damaged: it has no main part.")
        return path, root

    def metadata(self) -> dict[str, Scalar]:
        """Title, author and date of the last change, where they are known."""
        return core_metadata(self.xml(self.related_part("", "core-properties")))


def core_metadata(root: Node | None) -> dict[str, Scalar]:
    """Title, author and date of the last change from Dublin Core elements."""
    metadata: dict[str, Scalar] = {}
    for node in root.iter() if root is not None else ():
        key = _METADATA_KEYS.get(local_name(node))
        text = " ".join((node.text or "").split())
        if key and text and text not in _DEFAULT_VALUES:
            metadata.setdefault(key, text)
    return metadata
