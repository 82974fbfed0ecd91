"""RTF: the text of its paragraphs; table cells are separated by `|`."""

from __future__ import annotations

import re

from ragfm.core.errors import ParseError
from ragfm.parsing.rendering import ParsedText, clean

_CONTROL = re.compile(
    r"\\(?:(?P<hide>v|deleted)(?P<value>-?\d+)?|(?P<plain>plain)|par|cell|nestcell|row|nestrow|sect|page)(?![a-z\d-])"
    r"|(?P<note>(?:\\\*)?\\footnote(?![a-z\d]) ?)|\\(?P<escaped>[\\{}])|[{}]"
)
_NOTE_START = "\x02"


def read_rtf(data: bytes, name: str) -> ParsedText:
    """Return one block per paragraph. Raises ParseError."""
    from striprtf.striprtf import rtf_to_text

    try:
        text: str = rtf_to_text(_shown(data.decode("latin-1")), errors="replace")
    except (ValueError, LookupError, RecursionError, AttributeError, TypeError) as error:
        raise ParseError(f"{name} is a damaged RTF: {type(error).__name__}: {error}") from error
    text = re.sub(rf"[ \t]*{_NOTE_START}\s*", " [", text)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return ParsedText(clean(re.sub(r"\n{3,}", "\n\n", "\n\n".join(filter(None, lines)))))


def _shown(rtf: str) -> str:
    """The source without hidden and deleted text, and with its footnotes, which the library drops, in brackets."""
    parts: list[str] = []
    groups: list[tuple[bool, str]] = []  # around: whether text is hidden, and how the group ends
    is_hidden, closing, end = False, "}", 0
    for control in _CONTROL.finditer(rtf):
        if not is_hidden:
            parts.append(rtf[end : control.start()])
        end = control.end()
        kept = control[0]
        if kept == "{":
            groups.append((is_hidden, closing))
            closing = "}"
        elif kept == "}":
            kept = closing
            is_hidden, closing = groups.pop() if groups else (False, "}")
        elif control["hide"]:
            is_hidden = control["value"] != "0"
        elif control["plain"]:
            is_hidden = False
        elif control["note"] and not is_hidden:
            kept, closing = _NOTE_START, "]}"
        elif control["escaped"] and is_hidden:
            continue
        parts.append(kept)  # also in hidden text, where it ends paragraphs and cells
    return "".join(parts) + ("" if is_hidden else rtf[end:])
