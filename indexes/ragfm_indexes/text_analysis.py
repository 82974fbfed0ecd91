"""Words of a text, as a keyword index counts them: in which language, stemmed, without stop words.

    "Die AB-1234/5 läuft."  ─words→  Die  AB-1234/5  läuft  ─Analyzer("de").terms→  ab-1234/5 ab 1234  lauft

`words` cuts a text in the same way in any language; what the language changes comes after it, word by word, so that an
index can count the words first and choose the language by them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from operator import itemgetter

import regex
import Stemmer

from ragfm_indexes.stemmers import ALGORITHMS, STOP_WORDS

FINGERPRINT = f"1, Snowball {Stemmer.version()}"
"""Changes when the same text may give other terms; a saved index is of use to the same analysis only."""

# Written without spaces, or with words that are sentences: cut into pairs of characters, as Lucene's CJKAnalyzer does.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
_COMPOUND = r"{word}+(?:[-./:@&+'’]{word}+|(?<=\d),(?=\d){word}+)*(?:\+\+|\#)?"  # AB-1234/5, 1,000, R&D, C++
_ASCII_WORDS = re.compile(_COMPOUND.format(word=r"\w"), re.ASCII)
_WORDS = regex.compile(rf"([{_UNSPACED}]+)|" + _COMPOUND.format(word=rf"[\w--[{_UNSPACED}]]"), regex.V1)
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_IS_WHOLE = re.compile(r"[\d_.@&+#]")  # compounds that mean more than their parts
_PARTS = regex.compile(r"[^\W_]+")
_LETTERS_BEFORE = regex.compile(r"^[^\W\d_]+(?=\d)")  # v2.3.1 is 2.3.1, E1101 is 1101
_RUNS = regex.compile(r"\d+|[^\W\d_]+")
_ACCENTS = re.compile("[\u0300-\u036f]+")

_SCRIPTS = {
    "ja": regex.compile(r"[\p{Hiragana}\p{Katakana}]"),
    "ko": regex.compile(r"\p{Hangul}"),
    "th": regex.compile(r"\p{Thai}"),
    "zh": regex.compile(r"\p{Han}"),
}


def words(text: str) -> list[str]:
    """The words of a text in order; a compound as `AB-1234/5` is one.

    Where words have no spaces between them, each pair of neighbouring characters is one.
    """
    if text.isascii():
        return _ASCII_WORDS.findall(text)
    found: list[str] = []
    for match in _WORDS.finditer(unicodedata.normalize("NFKC", text).translate(_INVISIBLE)):
        run = match[1]
        if run is None:
            found.append(match[0])
        else:
            found += [run[at : at + 2] for at in range(len(run) - 1)] or [run]
    return found


class Analyzer:
    """Makes terms of words, by the rules of one language."""

    def __init__(self, language: str) -> None:
        """Raises ValueError for a language that is not in ALGORITHMS."""
        if language not in ALGORITHMS:
            raise ValueError(f"expected a language among {', '.join(ALGORITHMS)}, got {language!r}")
        self._stop_words = STOP_WORDS.get(language, frozenset())
        self._stemmer = Stemmer.Stemmer(ALGORITHMS[language], 0) if ALGORITHMS[language] else None

    def terms(self, word: str) -> list[str]:
        """What a word counts as: its stem, nothing if it is a stop word; a compound its parts, a code the whole too."""
        word = word.casefold()
        if word.isalpha():
            return self._stem(word)
        terms = []
        if _IS_WHOLE.search(word):
            whole = word.replace(",", "")
            terms += [whole, _LETTERS_BEFORE.sub("", whole)]
        fragment = 3 if "'" in word or "’" in word else 1  # it's, don't, l'eau, dell'acqua
        for part in _PARTS.findall(word):
            runs = _RUNS.findall(part)
            if len(runs) > 1:
                terms += [part, *(run for run in runs if len(run) > 1)]
            elif len(part) >= fragment:
                terms += self._stem(part)
        return list(dict.fromkeys(terms))

    def _stem(self, word: str) -> list[str]:
        if word in self._stop_words:
            return []
        if self._stemmer is not None:
            word = self._stemmer.stemWord(word)
        return [word if word.isascii() else _ACCENTS.sub("", unicodedata.normalize("NFKD", word))]


def term_key(term: str) -> int:
    """64 bits that stand for a term: two of a million terms share them once in 37 million indexes."""
    return int.from_bytes(blake2b(term.encode(), digest_size=8).digest())


def detect_language(counts: Mapping[str, int]) -> str:
    """The language of counted words: that whose stop words come most often, or whose script has most of the words.

    English where no stop word comes. A single letter counts for none: in code it is a variable.
    """
    votes, scripts = Counter({"en": 0}), Counter[str]()
    for word, count in counts.items():
        folded = word.casefold()
        if len(word) > 1:
            votes.update({language: count for language, stop_words in STOP_WORDS.items() if folded in stop_words})
        if not word.isascii():
            scripts.update({language: count for language, sign in _SCRIPTS.items() if sign.search(word)})
    language, most = max(scripts.items(), key=itemgetter(1), default=("", 0))
    if most * 2 > sum(counts.values()):
        return "ja" if scripts["ja"] * 10 > most else language  # Japanese has Chinese characters too
    return max(votes.items(), key=itemgetter(1))[0]
