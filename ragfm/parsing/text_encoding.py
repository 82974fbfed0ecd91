"""Decode text: by its byte order mark, as UTF-8, by its declared encoding, or by the most likely one."""

from __future__ import annotations

import codecs
import io
import re

_BYTE_ORDER_MARKS = (  # the first match wins: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes(code for code in range(32) if code not in b"\b\t\n\v\f\r\x1a\x1b")  # rare in 8-bit text
_NON_ASCII = re.compile(rb"[\x80-\xff]")
_SAMPLE = 1 << 16  # bytes from which an unknown encoding is guessed
_DAMAGED = 0.25  # of the characters beyond ASCII: 0.6 to 1 where 8-bit text is decoded as UTF-8
# Browsers read these encodings as larger ones: https://encoding.spec.whatwg.org/#names-and-labels
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "windows-31j": "cp932",
    "euc_kr": "cp949",
}
_SEVEN_BIT = ("iso2022", "hz", "utf-7")  # text in these encodings is valid ASCII
_WESTERN = (
    "äöüßéèà",  # German
    "àâæçèéêëîïôœùûüÿ",  # French
    "áàçéèíïñóòúü",  # Spanish, Catalan
    "àáâãçéêíóôõúü",  # Portuguese
    "àèéìîòóù",  # Italian
    "áéèêëïóöü",  # Dutch
    "åäöæøéü",  # Danish, Norwegian, Swedish, Finnish
    "áéíóúýþæöð",  # Icelandic
)
_CENTRAL = (
    "áčďéěíňóřšťúůýž",  # Czech
    "áäčďéíĺľňóôŕšťúýž",  # Slovak
    "ąćęłńóśźż",  # Polish
    "áéíóöőúüű",  # Hungarian
    "čćđšž",  # Croatian, Bosnian, Serbian, Slovenian
    "ăâîşţ",  # Romanian
)
# Encodings that are guessed, and the letters beyond ASCII of the languages written in them; none for other scripts.
_GUESSES: dict[str, tuple[str, ...]] = {
    "cp1252": _WESTERN,
    "cp1250": _CENTRAL,
    "iso8859_2": _CENTRAL,
    "cp1254": ("çğıöşüâîû\u0307",),  # Turkish; in lower case, İ has a combining dot
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž"),  # Lithuanian, Latvian, Estonian
    "cp850": _WESTERN,
    "mac_roman": _WESTERN,
    **dict.fromkeys(("cp1251", "koi8_r", "cp866", "cp1253", "cp1255", "cp1256", "cp874"), ()),
    **dict.fromkeys(("cp932", "euc_jp", "gb18030", "big5hkscs", "cp949"), ()),
}
_SYMBOLS = "¡¢£¥§©«®°±²³´µ¶·¹º»¼½¾¿×÷ª‘’‚“”„†•…‰‹›–—€™\xa0\xad"
_SYMBOL_IN_WORD = re.compile(r"(?<=[^\W\d_])[¡-¬®-¶¸-¿×÷‘‚“”„†•…‰‹›€™](?=[^\W\d_])")
_ASCII = dict.fromkeys(range(128))


def decode(data: bytes, charset: str | None = None) -> str | None:
    """Decode text; line ends become LF and a byte order mark is removed. None where the bytes are not text.

    `charset` is the encoding that the source or the document declares. It counts only where there is no byte order
    mark and the bytes are not UTF-8: text in another encoding is hardly ever valid UTF-8. Bytes that the encoding
    does not allow become U+FFFD.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decode_as(encoding, data)
    data = data.removeprefix(codecs.BOM_UTF8)
    declared = _codec(charset) if charset else ""
    if b"\0" in data:
        # UTF-16 without a mark: in most texts, every second byte is often NUL and the others never.
        even, odd = data[::2].count(0), data[1::2].count(0)
        if odd > len(data) / 8 and not even:
            return _decode_as("utf-16-le", data)
        if even > len(data) / 8 and not odd:
            return _decode_as("utf-16-be", data)
        return _decode_as(declared, data) if declared.startswith(("utf-16", "utf-32")) else None
    if declared.startswith(_SEVEN_BIT) and data.isascii() and (text := _decode_as(declared, data, _DAMAGED)):
        return text
    text = _decode_as("utf-8", data)
    if text is not None or len(data) - len(data.translate(None, _CONTROLS)) > len(data) / 1000:
        return text
    if text := _decode_as("utf-8", data, _DAMAGED):
        return text
    if not declared.startswith(("utf-16", "utf-32")) and (text := _decode_as(declared, data, 0.5)):
        return text
    return _decode_as(_guess_encoding(data), data, 1)


def _codec(label: str) -> str:
    """Python's name of the encoding that browsers read under this label; the label if it is unknown."""
    label = re.sub(r"^(?:x-)+|-[ie]$", "", label.strip().lower())
    label = re.sub(r"^(?:windows|dos)-(?=\d{3})", "cp", label)
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        name = label
    return _SUPERSETS.get(name, name)


def _decode_as(encoding: str, data: bytes, damaged: float = 0) -> str | None:
    """Decode with an encoding; None if more than this share of the characters beyond ASCII is damaged."""
    try:
        text = data.decode(encoding, "replace" if damaged else "strict")
    except (LookupError, ValueError):  # an unknown encoding; bytes that it does not allow
        return None
    if damaged and text.count("\ufffd") > damaged * (len(text) - len(text.encode("ascii", "ignore"))):
        return None
    return None if "\0" in text else text.replace("\r\n", "\n")


def _guess_encoding(data: bytes) -> str:
    from charset_normalizer import from_bytes

    sample = b""
    for line in io.BytesIO(data):
        if non_ascii := _NON_ASCII.search(line):
            start = non_ascii.start()
            sample += line[max(0, start - 100) : start + _SAMPLE]
            if len(sample) >= _SAMPLE:  # end at a byte that is never the second one of a character
                end = max(map(sample[:_SAMPLE].rfind, (b"\n", b" ", b",", b"/", b'"')))
                sample = sample[: end + 1] or sample
                break
    # Several encodings are often as likely: take the first one in which the letters are those of one language.
    if _is_written_in(sample.decode("cp1252", "replace"), _WESTERN):
        return "cp1252"
    # The library takes its shortcuts only if it may try ASCII and UTF-8. Rarer encodings are tried if no other fits.
    matches = from_bytes(sample, cp_isolation=[*_GUESSES, "ascii", "utf_8"])
    matches = matches or from_bytes(sample, cp_exclusion=["utf_16_be", "utf_16_le"])
    best = matches.best()
    if best is None:
        return "cp1252"
    close = [match for match in matches if match.chaos < best.chaos + 0.02]
    for match in close:  # the sample is the same text in all encodings of a match
        encoding = next((name for name in _GUESSES if name in match.could_be_from_charset), match.encoding)
        alphabets = _GUESSES.get(encoding)
        if not alphabets or _is_written_in(sample.decode(encoding), alphabets):
            return encoding
    return "cp1252" if any("cp1252" in match.could_be_from_charset for match in close) else best.encoding


def _is_written_in(text: str, alphabets: tuple[str, ...]) -> bool:
    """Whether nearly all characters beyond ASCII are letters of one language, or symbols that do not divide a word."""
    others = _SYMBOL_IN_WORD.sub("\ufffd", text.lower()).translate(_ASCII)
    return any(sum(char in alphabet + _SYMBOLS for char in others) >= 0.95 * len(others) for alphabet in alphabets)
