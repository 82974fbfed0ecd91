"""Contract test of parsers: `ragfm.testing.check_parser`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import get_args, get_type_hints

from ragfm.core.types import Mark, Scalar
from ragfm.parsing.parsers import Parser
from ragfm.parsing.rendering import ParsedText, clean
from ragfm.parsing.sandbox.confined_service import SERVICE_LIMITS, ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits
from ragfm.parsing.text_encoding import decode
from ragfm.testing.contract_checks import require

_KINDS = get_args(get_type_hints(Mark)["kind"])


def check_parser(parser: Parser, samples: Mapping[str, bytes]) -> None:
    """Parse `samples`, documents by file name, here and in a confined process.

    Raises AssertionError with the violation. The parser's class must be importable by its name. It need not be
    registered.
    """
    require(isinstance(parser, Parser), f"{parser!r} does not implement the Parser protocol")
    require(isinstance(parser.heavy, bool), f"heavy is {parser.heavy!r}, expected a bool")
    require(parser.formats, "formats is empty")
    formats = {}
    for entry in parser.formats:
        version = parser.version(entry.media_type)
        require(isinstance(version, str) and version, f"the version for {entry.media_type} is {version!r}")
        require(version == parser.version(entry.media_type), f"the version for {entry.media_type} changes")
        for suffix in entry.suffixes:
            dotted = suffix.startswith(".") and suffix == suffix.lower()
            require(dotted, f"the suffix {suffix!r} of {entry.name} needs a dot and lower case")
            formats[suffix] = entry
    require(samples, "a parser is checked with at least one sample")
    memory = Limits().model_memory if parser.heavy else SERVICE_LIMITS.memory
    limits = Limits(SERVICE_LIMITS.stall_seconds, SERVICE_LIMITS.seconds, memory=memory)
    service = ConfinedService("ragfm.testing.parser_service", limits=limits)
    try:
        for name, raw in samples.items():
            suffix = f".{name.rpartition('.')[2].lower()}"
            require(suffix in formats, f"the sample {name!r} has a suffix that is not among those of formats")
            entry = formats[suffix]
            data = raw if entry.binary else (decode(raw) or "").encode()
            parsed = parser.parse(data, name, entry.media_type)
            _check_parsed(parsed, name)
            again = parser.parse(data, name, entry.media_type)
            require(again == parsed, f"{name} gives another text or other marks when it is parsed again")
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.seek(0)
                kind = type(parser)
                arguments = (kind.__module__, kind.__qualname__, name, entry.media_type)
                marks, text = service.call(*arguments, file=file.fileno(), max_bytes=max(1 << 20, 8 * len(parsed.text)))
            same = text.decode() == parsed.text and tuple(Mark(*mark) for mark in marks) == tuple(parsed.marks)
            require(same, f"{name} gives another text or other marks in a confined process")
    finally:
        service.close()


def _check_parsed(parsed: ParsedText, name: str) -> None:
    require(isinstance(parsed, ParsedText), f"parse gives {parsed!r} for {name}, expected a ParsedText")
    require(parsed.text.strip(), f"the text of {name} is empty: raise SkipDocument instead")
    require(clean(parsed.text) == parsed.text, f"the text of {name} has NUL or lone surrogates, see `rendering.clean`")
    previous = 0
    for mark in parsed.marks:
        require(isinstance(mark, Mark) and mark.kind in _KINDS, f"{mark!r} of {name} is not a Mark of a known kind")
        least = 0 if mark.kind == "heading" and not mark.value else 1  # an empty heading ends a section
        inside = mark.start >= 0 and mark.start + least <= mark.end <= len(parsed.text)
        require(inside, f"{mark!r} of {name} is empty or not inside the text of {len(parsed.text)} characters")
        require(mark.start >= previous, f"the marks of {name} are not in the order of their starts")
        previous = mark.start
        require(clean(mark.value) == mark.value, f"the value of {mark!r} of {name} has NUL or lone surrogates")
        require(mark.kind != "heading" or mark.level >= 1, f"{mark!r} of {name} needs a level from 1")
        require(mark.kind != "page" or mark.value.isdecimal(), f"{mark!r} of {name} needs a page number as its value")
    for key, value in parsed.metadata.items():
        valid = isinstance(key, str) and isinstance(value, Scalar)
        require(valid, f"metadata of {name} must be strings, numbers or booleans, got {key!r}: {value!r}")
