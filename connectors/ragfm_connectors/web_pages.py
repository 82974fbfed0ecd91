"""What web pages list: the links of HTML, the pages of a sitemap, the entries of a feed.

Feeds are parsed here rather than by feedparser, see docs/decisions/020-ingestion.md.
"""

from __future__ import annotations

import codecs
import contextlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from selectolax.lexbor import LexborHTMLParser

from ragfm.core.errors import ConnectorError
from ragfm.core.types import Scalar
from ragfm.parsing.media_types import declared_charset
from ragfm.parsing.own.office.office_xml import local_name
from ragfm.parsing.text_encoding import decode
from ragfm_connectors.web_client import Page, canonical_url

_MAX_UNPACKED = 100 * 2**20  # bytes of a compressed sitemap; the protocol allows 50 MiB


@dataclass(frozen=True, slots=True)
class PageList:
    """The pages that a sitemap or a feed lists, by URL and metadata, and the further sitemaps of a sitemap index."""

    kind: str
    """`sitemap` or `feed`."""
    pages: list[tuple[str, dict[str, Scalar]]] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)


def is_html(page: Page) -> bool:
    """Whether a page is HTML: by its content type, else by the beginning of its content."""
    content_type = page.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type:
        return content_type in ("text/html", "application/xhtml+xml")
    return page.data[:500].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def parse_links(page: Page) -> tuple[str | None, list[str]]:
    """The canonical URL that an HTML page names, and the distinct http and https URLs it links to.

    Relative URLs are resolved against `<base>`.
    """
    charset = declared_charset(page.data, page.headers.get("Content-Type"))
    tree = LexborHTMLParser(decode(page.data, charset) or page.data)
    base_node = tree.css_first("base[href]")
    base = (_resolve(base_node.attributes.get("href"), page.url) if base_node else None) or page.url
    canonical_node = tree.css_first('link[rel="canonical"][href]')
    canonical = _resolve(canonical_node.attributes.get("href"), base) if canonical_node else None
    links = (_resolve(node.attributes.get("href"), base) for node in tree.css("a[href], area[href]"))
    return canonical, list(dict.fromkeys(link for link in links if link))


def parse_page_list(page: Page) -> PageList | None:
    """The pages that a sitemap or a feed lists; None for any other page.

    Entity declarations and external references are refused. Raises ConnectorError for invalid XML.
    """
    data = page.data
    if data.startswith(b"\x1f\x8b"):
        try:
            decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
            data = decompressor.decompress(data, _MAX_UNPACKED)
        except zlib.error as error:
            raise ConnectorError(f"{page.url} cannot be decompressed: {error}.") from error
        if decompressor.unconsumed_tail:
            raise ConnectorError(f"{page.url} has more than {_MAX_UNPACKED:,} bytes when decompressed.")
    data = data.removeprefix(codecs.BOM_UTF8).lstrip()
    if data.startswith((b"http://", b"https://")) and page.url.endswith(".txt"):  # a sitemap as plain text
        lines = data.decode("utf-8", "replace").splitlines()
        return PageList("sitemap", pages=[(url, {}) for url in _resolve_all(lines, page.url)])
    if not data.startswith(b"<") or is_html(page):
        return None
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        content_type = page.headers.get("Content-Type", "")
        if "xml" not in content_type and not page.url.endswith((".xml", ".xml.gz", ".rss", ".atom")):
            return None
        raise ConnectorError(f"{page.url} cannot be read as XML: {error!r}.") from error
    match local_name(root):
        case "urlset":
            locations = [_child_text(node, "loc") for node in root if local_name(node) == "url"]
            return PageList("sitemap", pages=[(url, {}) for url in _resolve_all(locations, page.url)])
        case "sitemapindex":
            locations = [_child_text(node, "loc") for node in root if local_name(node) == "sitemap"]
            return PageList("sitemap", sitemaps=_resolve_all(locations, page.url))
        case "rss" | "RDF" | "feed":
            return PageList("feed", pages=list(_feed_entries(root, page.url)))
    return None


def _resolve_all(locations: Iterable[str], base: str) -> list[str]:
    return [url for location in locations if (url := _resolve(location, base))]


def _feed_entries(root: Element, base: str) -> Iterator[tuple[str, dict[str, Scalar]]]:
    """The entries of an RSS or Atom feed that have a URL."""
    for node in root.iter():
        if local_name(node) not in ("item", "entry"):
            continue
        children = [(child, local_name(child)) for child in node]
        alternates = [
            child for child, tag in children if tag == "link" and child.get("rel", "alternate") == "alternate"
        ]
        hrefs = [href for child in alternates if (href := child.get("href"))]
        guids = [child.text for child, tag in children if tag == "guid" and child.get("isPermaLink") != "false"]
        authors = [_child_text(child, "name") for child, tag in children if tag == "author"]
        url = _resolve(hrefs[0] if hrefs else _child_text(node, "link") or (guids[0] if guids else None), base)
        if url is None:
            continue
        published = _child_text(node, "published", "pubDate", "date", "updated")
        with contextlib.suppress(ValueError, TypeError):  # a date of Atom is in ISO 8601 already
            published = parsedate_to_datetime(published).isoformat()
        metadata: dict[str, Scalar] = {
            "title": _child_text(node, "title"),
            "author": (authors[0] if authors else "") or _child_text(node, "creator", "author"),
            "published": published,
        }
        yield url, {key: value for key, value in metadata.items() if value}


def _child_text(node: Element, *names: str) -> str:
    """The text of the first child that has text, by the order of the names."""
    for name in names:
        for child in node:
            if local_name(child) == name:
                text = "".join(child.itertext()).strip()
                if text:
                    return " ".join(text.split())
    return ""


def _resolve(url: str | None, base: str) -> str | None:
    """The absolute URL; None unless it is http or https."""
    try:
        return canonical_url(url, base=base) if url and url.strip() else None
    except (ConnectorError, ValueError):
        return None
