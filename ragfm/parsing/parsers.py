"""The installed parsers, and which of them reads which format.

A parser is a plugin, ragfm's own included: a class that is registered in the group `ragfm.parsers`; see
docs/parsers.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from ragfm.core.errors import ConfigError, MissingExtraError
from ragfm.core.registry import load_plugin, plugins
from ragfm.parsing.figures import VISION_HINT
from ragfm.parsing.formats import DECLARED, PDF, TEXT, Format
from ragfm.parsing.own.media.ocr import has_ocr
from ragfm.parsing.rendering import ParsedText

OWN = "ragfm"
"""Name of the plugin with ragfm's own parsers, which is the default for every format that it reads."""


@runtime_checkable
class Parser(Protocol):
    """Reads documents of some formats. Created without arguments, in ragfm's process and in confined workers.

    A parser that can return figures has an attribute `image_formats`, their media types; `parse` then also takes
    `images`, which is true or `pages`, see `parsing.figures`.
    """

    @property
    def formats(self) -> Sequence[Format]:
        """The formats, from `ragfm.parsing.formats.FORMATS` or new ones."""

    @property
    def heavy(self) -> bool:
        """Whether a document may take 3 GiB of memory, and a long time without a call of `heartbeat.beat`."""

    def version(self, media_type: str) -> str:
        """Must change when the text, marks or metadata may change; the documents are then parsed again."""

    def parse(self, data: bytes, name: str, media_type: str) -> ParsedText:
        """Parse a document; the text of a format that is not binary is in UTF-8. `name` is for messages.

        Raises ParseError for damaged documents, SkipDocument if there is nothing to index.
        """


@dataclass(frozen=True, slots=True)
class ParserChoice:
    """The section `[parse]` of `ragfm.toml`: parsers by suffix, one to try where they fail, whether to keep images."""

    parsers: Mapping[str, str] = field(default_factory=dict)
    fallback: str = ""
    images: bool | Literal["pages"] = False

    def check(self) -> None:
        """Raise UnknownPluginError, MissingExtraError or ConfigError for a choice that cannot be satisfied."""
        for suffix, name in self.parsers.items():
            load_plugin("parsers", name)
            formats = installed_parsers()[name].formats
            if _dotted(suffix) not in {suffix for entry in formats for suffix in entry.suffixes}:
                known = " ".join(suffix.removeprefix(".") for entry in formats for suffix in entry.suffixes)
                raise ConfigError(
                    f"`parse.parsers.{suffix}`: the parser {name!r} does not read {_dotted(suffix)} files.",
                    f"It reads: {known}.",
                )
        if self.fallback:
            load_plugin("parsers", self.fallback)
        if self.images and find_spec("PIL") is None:
            raise MissingExtraError("`parse.images` needs Pillow, which is not installed.", VISION_HINT)

    @property
    def description(self) -> str:
        """All versions and choices, in a string that changes if any document may be parsed differently."""
        versions = {
            kind: [self.parser_version(name, kind) for name in self.parsers_for(kind)]
            for kind in known_formats().by_type
        }
        return json.dumps(versions, sort_keys=True)

    def parsers_for(self, media_type: str) -> list[str]:
        """Names of the parsers to try, the first one first; empty if no parser reads the format."""
        known = known_formats()
        readers = known.readers.get(media_type, [])
        chosen = [name for suffix, name in self.parsers.items() if known.by_suffix.get(_dotted(suffix)) == media_type]
        names = chosen[-1:] or readers[:1]
        if self.fallback in readers and self.fallback not in names:
            names.append(self.fallback)
        return names

    def version(self, media_type: str, uri: str = "") -> str:
        """Name and version of the parser of a document of this type, empty if there is none; for recipes.

        The suffix of `uri` may name a text format that was not known when the document was read as plain text.
        """
        if media_type == TEXT:
            known = known_formats()
            named = known.by_suffix.get(PurePosixPath(uri).suffix.lower(), TEXT)
            media_type = media_type if known.by_type[named].binary else named
        names = self.parsers_for(media_type)
        return self.parser_version(names[0], media_type) if names else ""

    def parser_version(self, name: str, media_type: str) -> str:
        """Name and version of a parser in a recipe; where it keeps images, also that, and whether it can read them."""
        parser = installed_parsers().get(name)
        version = parser.version(media_type) if parser else ""
        version = version if name == OWN else f"{name} {version}"
        if not self.images or media_type not in image_formats(name):
            return version
        kept = "pages" if self.images == "pages" and media_type == PDF else "images"
        return f"{version}+{kept}{'+ocr' if has_ocr() and '+ocr' not in version else ''}"


class KnownFormats(NamedTuple):
    """The formats of all installed parsers."""

    by_type: Mapping[str, Format]
    by_suffix: Mapping[str, str]
    """Media types by suffix."""
    declared: Mapping[str, str]
    """Media types by the type that a source declares."""
    readers: Mapping[str, list[str]]
    """Names of the parsers by media type."""


@cache
def installed_parsers() -> Mapping[str, Parser]:
    """The parsers whose libraries are installed: ragfm's own first, then in alphabetical order."""
    found: dict[str, Parser] = {}
    for name in sorted(plugins("parsers"), key=lambda name: name != OWN):
        with suppress(MissingExtraError):
            found[name] = load_plugin("parsers", name)()
    return found


@cache
def known_formats() -> KnownFormats:
    """The formats that can be read. Where parsers differ about a suffix, the first parser decides."""
    by_type: dict[str, Format] = {}
    by_suffix: dict[str, str] = {}
    readers: dict[str, list[str]] = defaultdict(list)
    for name, parser in installed_parsers().items():
        for entry in parser.formats:
            by_type.setdefault(entry.media_type, entry)
            readers[entry.media_type].append(name)
            for suffix in entry.suffixes:
                by_suffix.setdefault(suffix, entry.media_type)
    return KnownFormats(by_type, by_suffix, {**{kind: kind for kind in by_type}, **DECLARED}, readers)


def image_formats(name: str) -> Collection[str]:
    """The media types for which a parser returns figures."""
    found: Collection[str] = getattr(installed_parsers().get(name), "image_formats", ())
    return found


def _dotted(suffix: str) -> str:
    return f".{suffix.lower().removeprefix('.')}"
