"""Words that are compared: what of a text counts, which are names and numbers, and which mean the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(
    r"(?:(?<![^\s(\[{|=:<>≤≥≈~*\"“„«])[-−]|\b[Mm]inus\s+)?\d+(?:[.,:]\d+)*"  # the hyphen of a range is no sign
    r"|[^\W\d_]+"
)
_SIGN = re.compile(r"[-−]|minus\s+")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_STOP = frozenset(
    """
    a according an and are as at based be been but by can did do does for from get gets go goes got had has have how i
    if in into is it its may more must my of on or our passage passages per shall should so than that the their them
    then there these they this to up was we were what when where which who will with would you your yes
    """.split()
)
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty".split()
    )
} | {word: str(10 * number) for number, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)}
_ALSO_NAMES = ("may", "will")
_AMOUNTS = frozenset("dozen half hundred thousand million billion trillion".split())


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text: `names` and `numbers` are among `all`; the `first` may have its capital from that."""

    all: frozenset[str]
    names: frozenset[str]
    numbers: frozenset[str]
    first: str

    @property
    def exact(self) -> frozenset[str]:
        """Those that a quote must have, each of them."""
        return self.names | self.numbers


def words_of(text: str) -> Words:
    """Words without their endings, stop words left out; numbers as digits with their sign, without separators."""
    every, names, numbers, first = set[str](), set[str](), set[str](), ""
    for at, match in enumerate(_WORD.finditer(text)):
        word = match[0].casefold()
        capital = match[0][0].isupper()
        if word in _STOP and not (word in _ALSO_NAMES and capital and at):
            continue
        stem = _stem(word)
        every.add(stem)
        first = first if at else stem
        if _is_number(stem) or word in _AMOUNTS:
            numbers.add(stem)
        elif capital:
            names.add(stem)
    return Words(frozenset(every), frozenset(names), frozenset(numbers), first)


def _stem(word: str) -> str:
    if word in _NUMBERS:
        return _NUMBERS[word]
    if _is_number(word):
        number = _SIGN.sub("-", word)
        return number.replace(",", "" if _THOUSANDS.fullmatch(number) else ".")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _is_number(word: str) -> bool:
    return word[-1].isdecimal()


def stands_in(word: str, known: frozenset[str], *, endings: int | None = None) -> bool:
    """Whether a word is known, or with another ending; of `endings` letters more or less at most, where given."""
    if word in known or _is_number(word) or len(word) < 5:
        return word in known
    if endings is not None:
        return any(abs(len(word) - len(other)) <= endings and (word.startswith(other) or other.startswith(word))
                   for other in known)  # fmt: skip
    beginning = word[: max(5, len(word) - 3)]
    return any(other.startswith(beginning) for other in known)
