"""The plugin `trafilatura`: the main text of web pages, without navigation, advertisements and comments."""

from __future__ import annotations

from importlib.metadata import version

from ragfm.core.errors import ParseError
from ragfm.parsing.formats import FORMATS, HTML
from ragfm.parsing.own.markdown import read_markdown
from ragfm.parsing.rendering import ParsedText

_LIBRARY_VERSION = version("trafilatura")  # without it, loading the plugin raises ModuleNotFoundError
_VERSION = "1"


class TrafilaturaParser:
    """Reads HTML."""

    formats = (FORMATS[HTML],)
    heavy = True

    def version(self, media_type: str) -> str:
        """The versions of this module and of the library."""
        return f"{_VERSION}/{_LIBRARY_VERSION}"

    def parse(self, data: bytes, name: str, media_type: str) -> ParsedText:
        """Return the main text as Markdown. Raises ParseError if the page has none; a fallback then reads all of it."""
        from trafilatura import extract

        markdown = extract(data.decode(), output_format="markdown", include_comments=False, include_tables=True)
        if not markdown:
            raise ParseError(f"{name} has no main text that trafilatura can find.", 'Set `fallback = "ragfm"`.')
        return read_markdown(markdown, name)
