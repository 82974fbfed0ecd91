"""Text analysis of a keyword index: words, stemmed terms without stop words, and language detection.

    "Die AB-1234/5 läuft."  ─words→  Die  AB-1234/5  läuft  ─Analyzer("de").terms→  ab-1234/5 ab 1234  lauft

`words` does not depend on the language; `Analyzer` then converts word by word. So an index can count words first, and
detect the language from the counts.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path

import regex
import Stemmer

STEMMED = frozenset(
    "ar ca cs da de el en eo es et eu fa fi fr ga hi hu hy id it lt ne nl no pl pt ro ru sr st sv ta tr yi".split()
)
"""Languages (ISO 639-1) that have an algorithm of Snowball."""
LANGUAGES = STEMMED | {"ja", "ko", "simple", "th", "zh"}
"""Supported languages; `simple` is any other language, without stems."""
STOP_WORDS = {
    language: frozenset(listed.split())
    for language, listed in tomllib.loads(Path(__file__).with_name("stop_words.toml").read_text("utf-8")).items()
}
"""Case-folded, not stemmed. A language without a list has no stop words and cannot be detected by them."""
FINGERPRINT = f"3, Snowball {Stemmer.version()}"
"""Version of the analysis. A saved index can only be searched with the analysis that built it."""

# Scripts without spaces between words; split into pairs of characters, as Lucene's CJKAnalyzer does.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
_COMPOUND = r"{word}+(?:[-./:@&+'’]{word}+|(?<=\d),(?=\d){word}+)*(?:\+\+|\#)?"  # AB-1234/5, 1,000, R&D, C++
_ASCII_WORDS = re.compile(_COMPOUND.format(word=r"\w"), re.ASCII)
_WORDS = regex.compile(rf"([{_UNSPACED}]+)|" + _COMPOUND.format(word=rf"[\w--[{_UNSPACED}]]"), regex.V1)
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_INDEXED_WHOLE = re.compile(r"[\d_.@&+#]")  # compounds that are indexed whole, in addition to their parts
_DOTTED = regex.compile(r"\p{L}(?:\.\p{L})+")  # U.S, which is US; the last dot is not part of the word
_PARTS = regex.compile(r"[^\W_]+")
_LEADING_LETTERS = regex.compile(r"^[^\W\d_]+(?=\d)")  # v2.3.1 also matches 2.3.1, E1101 also 1101
_LETTER_OR_DIGIT_RUNS = regex.compile(r"\d+|[^\W\d_]+")
CAMEL_CASE = regex.compile(r"(?<=[\p{Ll}\p{N}])(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}{2})")
"""Where an identifier is split: `getUserName`, `HTTPServer`; not `PDFs`."""
_ACCENTS = re.compile("[\u0300-\u036f]+")

_SCRIPTS = {
    "ja": regex.compile(r"[\p{Hiragana}\p{Katakana}]"),
    "ko": regex.compile(r"\p{Hangul}"),
    "th": regex.compile(r"\p{Thai}"),
    "zh": regex.compile(r"\p{Han}"),
}


def words(text: str) -> list[str]:
    """The words of a text in order. A compound such as `AB-1234/5` is one word.

    In scripts without spaces, each pair of adjacent characters is a word. A text of several words in capitals is read
    as lower case, since its capitals do not tell acronyms from words.
    """
    if text.isupper() and len(text.split(maxsplit=1)) > 1:
        text = text.lower()
    if text.isascii():
        return _ASCII_WORDS.findall(text)
    result: list[str] = []
    for match in _WORDS.finditer(unicodedata.normalize("NFKC", text).translate(_INVISIBLE)):
        run = match[1]
        if run is None:
            result.append(match[0])
        else:
            result += [run[start : start + 2] for start in range(len(run) - 1)] or [run]
    return result


class Analyzer:
    """Converts words to terms by the rules of one language."""

    def __init__(self, language: str) -> None:
        """Raises ValueError for a language that LANGUAGES does not have."""
        if language not in LANGUAGES:
            raise ValueError(f"expected a language among {', '.join(sorted(LANGUAGES))}, got {language!r}")
        self._stop_words = STOP_WORDS.get(language, frozenset())
        self._stemmer = Stemmer.Stemmer(language, 0) if language in STEMMED else None

    def terms(self, word: str) -> list[str]:
        """The terms of a word: its stem, or none for a stop word. A compound has its parts; a code also the whole.

        An identifier such as `getUserName` has its words as well. An acronym is no stop word: IT, WHO.
        """
        inner = [part for part in CAMEL_CASE.split(word) if len(part) > 1] if CAMEL_CASE.search(word) else []
        is_acronym = word.isupper() and len(word) > 1
        word = word.casefold()
        if _DOTTED.fullmatch(word):
            terms = [word, word.replace(".", "")]
        elif is_acronym and word in self._stop_words:
            terms = [word]
        else:
            terms = self._stem(word) if word.isalpha() else self._compound(word)
        for part in inner:
            terms += [term for term in self.terms(part) if term not in terms]
        return terms

    def _compound(self, word: str) -> list[str]:
        terms = []
        if _INDEXED_WHOLE.search(word):
            whole = word.replace(",", "")
            terms += [whole, _LEADING_LETTERS.sub("", whole)]
        min_length = 3 if "'" in word or "’" in word else 1  # it's, don't, l'eau, dell'acqua
        for part in _PARTS.findall(word):
            runs = _LETTER_OR_DIGIT_RUNS.findall(part)
            if len(runs) > 1:
                terms += [part, *(run for run in runs if len(run) > 1)]
            elif len(part) >= min_length:
                terms += self._stem(part)
        return list(dict.fromkeys(terms))

    def _stem(self, word: str) -> list[str]:
        if word in self._stop_words:
            return []
        if self._stemmer is not None:
            word = self._stemmer.stemWord(word)
        return [word if word.isascii() else _ACCENTS.sub("", unicodedata.normalize("NFKD", word))]


def term_key(term: str) -> int:
    """A 64-bit hash of a term. Among a million terms, a collision occurs in one of 37 million indexes."""
    return int.from_bytes(blake2b(term.encode(), digest_size=8).digest())


def language_of(text: str) -> str | None:
    """The language of a short text, such as a question; None if it has no stop word and no script tells it."""
    counts = Counter(words(text))
    language = detect_language(counts)
    known = language != "en" or any(word.casefold() in STOP_WORDS["en"] for word in counts)
    return language if known else None


def detect_language(counts: Mapping[str, int]) -> str:
    """Detect the language of counted words by their stop words, or by a script that has most of the words.

    Returns `en` if there is no stop word. Single letters do not count: in code they are variables.
    """
    votes, scripts = Counter({"en": 0}), Counter[str]()
    for word, count in counts.items():
        folded = word.casefold()
        if len(word) > 1:
            votes.update({language: count for language, stop_words in STOP_WORDS.items() if folded in stop_words})
        if not word.isascii():
            scripts.update({language: count for language, script in _SCRIPTS.items() if script.search(word)})
    language, script_words = max(scripts.items(), key=itemgetter(1), default=("", 0))
    if script_words * 2 > sum(counts.values()):
        return "ja" if scripts["ja"] * 10 > script_words else language  # Japanese uses Chinese characters as well
    return max(votes.items(), key=itemgetter(1))[0]
