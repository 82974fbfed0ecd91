"""What a web page leads to: the links of HTML, the pages of a sitemap, the entries of a feed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from selectolax.lexbor import LexborHTMLParser

from ragfm.core.errors import ConnectorError
from ragfm.core.types import Scalar
from ragfm_connectors.web_client import Page, canonical

_MOST = 100 * 2**20  # bytes of a sitemap that came compressed; they may have 50 MiB


@dataclass(frozen=True, slots=True)
class Entry:
    """A page that a sitemap or a feed lists, and what it says of it."""

    url: str
    metadata: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contents:
    """The pages, and of a sitemap the other sitemaps, that a page lists."""

    kind: str
    """`sitemap` or `feed`."""
    entries: list[Entry] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)


def is_html(page: Page) -> bool:
    """By what the server says, else by how the content begins."""
    said = page.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if said in ("text/html", "application/xhtml+xml"):
        return True
    return not said and page.data[:500].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def links(page: Page) -> tuple[str | None, list[str]]:
    """The address that an HTML page gives as its own, and those that it links to; what is no web address is left out.

    `<base>` counts.
    """
    tree = LexborHTMLParser(page.data)
    at = tree.css_first("base[href]")
    base = _address(at.attributes.get("href") if at else None, page.url) or page.url
    own = tree.css_first('link[rel="canonical"][href]')
    found = (_address(node.attributes.get("href"), base) for node in tree.css("a[href], area[href]"))
    named = _address(own.attributes.get("href"), base) if own else None
    return named, list(dict.fromkeys(url for url in found if url))


def contents(page: Page) -> Contents | None:
    """What a sitemap or a feed lists; None for any other page.

    Entities and what lies outside of the document are never followed. Raises ConnectorError for XML that can't be read.
    """
    data = _unzipped(page)
    if data.startswith((b"http://", b"https://")) and page.url.endswith(".txt"):  # a sitemap as plain text
        urls = (_address(line, page.url) for line in data.decode("utf-8", "replace").splitlines())
        return Contents("sitemap", [Entry(url) for url in urls if url])
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<") or is_html(page):
        return None
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        said = page.headers.get("Content-Type", "")
        if "xml" not in said and not page.url.endswith((".xml", ".xml.gz", ".rss", ".atom")):
            return None
        raise ConnectorError(f"{page.url} is XML that can't be read: {error!r}.") from error
    kind = _name(root)
    if kind == "urlset":
        return Contents("sitemap", entries=[Entry(url) for url in _locations(root, "url", page.url)])
    if kind == "sitemapindex":
        return Contents("sitemap", sitemaps=list(_locations(root, "sitemap", page.url)))
    if kind in ("rss", "RDF", "feed"):
        return Contents("feed", [entry for node in root.iter() if (entry := _entry(node, page.url))])
    return None


def _unzipped(page: Page) -> bytes:
    if not page.data.startswith(b"\x1f\x8b"):
        return page.data
    try:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        data = unpacker.decompress(page.data, _MOST)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ConnectorError(f"{page.url} can't be unpacked: {error}.") from error
    if unpacker.unconsumed_tail:
        raise ConnectorError(f"{page.url} has more than {_MOST:,} bytes when it is unpacked.")
    return data


def _name(node: Element) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _child(node: Element, *names: str) -> str:
    """The text of the first child of one of the names."""
    for name in names:
        for child in node:
            if _name(child) == name and (text := "".join(child.itertext()).strip()):
                return " ".join(text.split())
    return ""


def _locations(root: Element, name: str, base: str) -> Iterator[str]:
    for node in root:
        if _name(node) == name and (url := _address(_child(node, "loc"), base)):
            yield url


def _entry(node: Element, base: str) -> Entry | None:
    if _name(node) not in ("item", "entry"):
        return None
    linked = [child for child in node if _name(child) == "link"]
    atom = next((at.get("href") for at in linked if at.get("href") and at.get("rel", "alternate") == "alternate"), None)
    url = _address(atom or _child(node, "link") or _permanent(node), base)
    if url is None:
        return None
    author = next((_child(at, "name") for at in node if _name(at) == "author"), "")
    said: dict[str, Scalar] = {
        "title": _child(node, "title"),
        "author": author or _child(node, "creator", "author"),
        "published": _date(_child(node, "published", "pubDate", "date", "updated")),
    }
    return Entry(url, {key: value for key, value in said.items() if value})


def _permanent(node: Element) -> str:
    """The `guid` of an RSS item, which is an address unless it says that it isn't."""
    return next((at.text or "" for at in node if _name(at) == "guid" and at.get("isPermaLink") != "false"), "")


def _date(text: str) -> str:
    try:
        return parsedate_to_datetime(text).isoformat()
    except (ValueError, TypeError):
        return text


def _address(text: str | None, base: str) -> str | None:
    try:
        return canonical(text, base=base) if text and text.strip() else None
    except (ConnectorError, ValueError):
        return None
