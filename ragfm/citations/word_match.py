"""Words that are compared: what of a text counts, which are names and numbers, and which mean the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_HAN, _HIRAGANA, _KATAKANA = "々〆㐀-䶿一-鿿豈-\ufaff\U00020000-\U0003ffff", "ぁ-ゖゝゞ", "ァ-ヺー-ヿ"
_HAN_DIGITS = "〇零一二三四五六七八九十百千万萬亿億"
_WORD = re.compile(
    r"(?:(?<![^\s(\[{|=:<>≤≥≈~*\"“„«])[-−]|\b[Mm]inus\s+)?\d+(?:[.,:]\d+)*"  # the hyphen of a range is no sign
    rf"|(?P<numeral>[{_HAN_DIGITS}]+)"
    rf"|(?P<unspaced>(?:(?![{_HAN_DIGITS}的是在了吗呢嗎])[{_HAN}])+|[{_HIRAGANA}]+)"  # left out: as stop words
    rf"|[{_KATAKANA}]+"
    rf"|[^\W\d_{_HAN}{_HIRAGANA}{_KATAKANA}]+"
)
_SIGN = re.compile(r"[-−]|minus\s+")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_STOP = frozenset(
    """
    a according an and are as at based be been but by can did do does for from get gets go goes got had has have how i
    if in into is it its may more must my of on or our passage passages per shall should so than that the their them
    then there these they this to up was we were what when where which who will with would you your yes
    は が を に の で と も へ や か です でし ます まし した すか あり にあ があ
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
    """Words without their endings, stop words left out; numbers as digits with their sign, without separators.

    Of Chinese characters and hiragana, which have no spaces between words, each pair of neighbours is a word.
    """
    every, names, numbers, first = set[str](), set[str](), set[str](), ""
    for at, word, stem, capital in _counted(text):
        every.add(stem)
        first = first if at else stem
        if _is_number(stem) or word in _AMOUNTS:
            numbers.add(stem)
        elif capital:
            names.add(stem)
    return Words(frozenset(every), frozenset(names), frozenset(numbers), first)


def word_sequence(text: str, *, also: frozenset[str] = frozenset()) -> list[str]:
    """The words of `words_of`, and some `also`, in the order in which they stand, each as often as it does."""
    return [stem for _, _, stem, _ in _counted(text, also)]


def _counted(text: str, also: frozenset[str] = frozenset()) -> Iterator[tuple[int, str, str, bool]]:
    """Each word that counts: its number, in lower case, without its ending, and whether it has a capital."""
    for at, found in enumerate(_found(text)):
        word, capital = found.casefold(), found[0].isupper()
        if word not in _STOP or word in also or (word in _ALSO_NAMES and capital and at):
            yield at, word, _stem(word), capital


def _found(text: str) -> Iterator[str]:
    for match in _WORD.finditer(text):
        run = match["unspaced"]
        if match["numeral"]:
            yield str(_value(match["numeral"]))
        elif run and len(run) > 1:
            yield from (run[at : at + 2] for at in range(len(run) - 1))
        else:
            yield match[0]


def _value(numeral: str) -> int:
    """The number that Chinese characters write: 三百五十 is 350, 二〇二四 is 2024."""
    values = [int(unicodedata.numeric(sign)) for sign in numeral]
    if max(values) < 10:
        return int("".join(map(str, values)))
    total = below = digit = 0  # the whole, its part below ten thousand, and the digit before what multiplies it
    for value in values:
        if value < 10:
            digit = value
        elif value < 10_000:
            below, digit = below + (digit or 1) * value, 0
        else:
            total, below, digit = (total + below + digit or 1) * value, 0, 0
    return total + below + digit


def _stem(word: str) -> str:
    if word in _NUMBERS:
        return _NUMBERS[word]
    if _is_number(word):
        number = _SIGN.sub("-", unicodedata.normalize("NFKC", word))  # of full width, too
        return number.replace(",", "" if _THOUSANDS.fullmatch(number) else ".")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def number_of(word: str) -> str | None:
    """A word in lower case as `words_of` has it, if it is a number."""
    stem = _stem(word)
    return stem if _is_number(stem) else None


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
