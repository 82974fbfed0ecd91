"""Normalise a reader's output while it streams: reasoning, preambles and citation markers of different model families.

    <think>…</think>, <thinking>…, [THINK]…[/THINK]     reasoning, kept apart from the answer
    "Based on the passages, …", "Answer: …"             the preamble is left out
    [Source 1], [1-3], [[1]], **[1]**, 【1】, 【4:1†source】, (1)   become [1], [1, 2, 3], [1], …

Text is held back only while it may become one of these.
"""

from __future__ import annotations

import re
from functools import partial

import regex

from ragfm.core.abstention import SOURCES

REASONING_TAGS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
"""The tags around the reasoning of different model families: the end by the beginning."""
_REASONING_START = re.compile(rf"\s*(?:{'|'.join(map(re.escape, REASONING_TAGS))})")
_REASONING_END = re.compile("|".join(map(re.escape, REASONING_TAGS.values())))

_PREAMBLE = regex.compile(
    rf"""(?:
      (?:based\ (?:solely\ |only\ )?on|according\ to|as\ (?:stated|mentioned|described)\ in|as\ per|from)
        \ (?:(?:the|these|your)\ )?(?:\w+\ )?{SOURCES}(?:\ (?:above|below|provided|given|you\ provided))?
        (?:\ ?[\[(【]?\d{{1,2}}[\])】]?)? ,\s*
    | \**(?:final\ )?answer\**:\**\s*
    )+""",
    regex.IGNORECASE | regex.VERBOSE,
)
"""Without it, the answers of larger readers start with these words, which token F1 counts as wrong."""
_MAX_PREAMBLE = 80  # characters

_LABEL = rf"{SOURCES}\.?\s*"
_NUMBERS = rf"\d{{1,2}}(?:\s*(?:[,;，、&–-]|[^\W\d_]{{1,3}})\s*(?:{_LABEL})?\d{{1,2}})*"  # 1, 2; 1-3; 1 and 2
_MARKER = re.compile(
    rf"""(?P<stars>\*{{1,2}})?\[{{1,2}}\^?\s*(?:{_LABEL})?(?P<square>{_NUMBERS})(?:†[^\]\n]*)?\s*\]{{1,2}}(?(stars)(?P=stars))
    | 【\s*(?:{_LABEL})?(?:\d+:)?(?P<lenticular>{_NUMBERS})(?:†[^】\n]*)?\s*】
    | \((?:[^\W\d_]+\ )?{_LABEL}(?P<labelled>{_NUMBERS})\)
    | (?<=[\w%"'”’]\ )\((?P<round>{_NUMBERS})\)(?=\s*(?:[.,;!?]|$))""",
    re.IGNORECASE | re.VERBOSE,
)
_UNFINISHED_MARKER = re.compile(r"(?:\*{0,2}(?:\[{1,2}|【|\()[^\[\]()【】\n]{0,40}(?:[\])】]\]?\s*\*{0,2})?|\*{1,2})$")


def split_reasoning(output: str) -> tuple[str, str]:
    """Split a whole output into its reasoning and its answer. It may start within the reasoning, or end there."""
    start, ends = _REASONING_START.match(output), list(_REASONING_END.finditer(output))
    if not start and not ends:
        return "", output.strip()
    reasoning, answer = (output[: ends[-1].start()], output[ends[-1].end() :]) if ends else (output, "")
    return reasoning[start.end() if start else 0 :].strip(), answer.strip()


class OutputNormalizer:
    """Takes a reader's output piece by piece and returns the normalised text as soon as it is certain.

    `passages` is the number of passages in the prompt: a number beyond it in round brackets or a range is not a marker.
    `reasoning` has the text between the tags of a reader that thinks. With `in_reasoning`, the output starts within the
    reasoning. Behind a server this is not known: such reasoning is returned as text.
    """

    def __init__(self, passages: int, *, in_reasoning: bool = False) -> None:
        self.reasoning = ""
        self._passages = passages
        self._held = ""
        self._returned = ""
        self._stage = "reasoning" if in_reasoning else "start"

    def feed(self, piece: str) -> str:
        """The text that is certain after another piece of output."""
        self._held += piece
        return self._release(final=False)

    def finish(self) -> str:
        """The rest of the text."""
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        if self._stage == "start":
            beginning = self._held.lstrip()
            if any(tag.startswith(beginning) for tag in REASONING_TAGS) and not final:
                return ""
            self._stage = "reasoning" if _REASONING_START.match(self._held) else "opening"
        if self._stage == "reasoning":
            end = _REASONING_END.search(self._held)
            if not end and not final:
                return ""
            reasoning, self._held = (self._held[: end.start()], self._held[end.end() :]) if end else (self._held, "")
            self.reasoning, self._stage = _REASONING_START.sub("", reasoning, count=1).strip(), "opening"
        if self._stage == "opening":
            self._held = self._held.lstrip()
            preamble = _PREAMBLE.match(self._held)
            rest = self._held[preamble.end() :] if preamble else self._held
            if not final and len(rest) < _MAX_PREAMBLE and _PREAMBLE.fullmatch(self._held, partial=True):
                return ""
            if preamble and rest:
                self._held = rest[0].upper() + rest[1:]
            self._stage = "answer"

        unfinished = None if final else _UNFINISHED_MARKER.search(self._held)
        certain = self._held[: unfinished.start()] if unfinished else self._held
        self._held = self._held[len(certain) :]
        before = self._returned[-2:]  # the text before a marker matters
        text = _MARKER.sub(partial(self._canonical, final=final), before + certain)[len(before) :]
        self._returned += text
        return text

    def _canonical(self, marker: re.Match[str], *, final: bool) -> str:
        listed = marker["square"] or marker["lenticular"] or marker["labelled"] or marker["round"]
        numbers: list[int] = []
        for first, last in re.findall(r"(\d+)(?:\s*[-–]\s*(\d+))?", listed):
            numbers += range(int(first), int(last or first) + 1)
        if marker["round"] and not final and not marker.string[marker.end() :].strip():
            return marker[0]  # another bracket follows: only one at the end of a clause is a marker
        in_prompt = all(1 <= number <= self._passages for number in numbers)
        if not numbers or (not in_prompt and (marker["round"] or len(numbers) > listed.count(",") + 1)):
            return marker[0]
        return f"[{', '.join(map(str, dict.fromkeys(numbers)))}]"
