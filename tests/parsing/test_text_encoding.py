from __future__ import annotations

import pytest
from support.parsed_documents import document

from ragfm.core.errors import ParseError
from ragfm.core.types import Blob
from ragfm.parsing import parse
from ragfm.parsing.text_encoding import decode

UMLAUTS = "Grüße aus München – für dich.\n" * 20


@pytest.mark.parametrize(
    "data",
    [
        UMLAUTS.encode(),
        UMLAUTS.encode("utf-8-sig"),
        UMLAUTS.encode("utf-16"),
        b"\xfe\xff" + UMLAUTS.encode("utf-16-be"),
        UMLAUTS.encode("utf-16-le"),
        UMLAUTS.encode("utf-16-be"),
        UMLAUTS.encode("utf-32"),
        UMLAUTS.encode("cp1252"),
        UMLAUTS.replace("\n", "\r\n").encode(),
    ],
)
def test_encodings(data: bytes) -> None:
    assert document(data, "a.txt").text == UMLAUTS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (UMLAUTS.encode() + b"caf\xe9", UMLAUTS + "caf\ufffd"),
        (b"\xef\xbb\xbf" + UMLAUTS.encode() + b"caf\xe9", UMLAUTS + "caf\ufffd"),
        (b"\xef\xbb\xbfcaf\xe9", "café"),
        (UMLAUTS.encode() + "Ä".encode()[:1], UMLAUTS + "\ufffd"),  # cut within a character
        ("Für Köln – gut".encode() + b" \xff", "Für Köln – gut \ufffd"),
        ("日本語の文書です。".encode() + b"\xff", "日本語の文書です。\ufffd"),
        (b"ASCII\n" * 20_000 + "Müller\n".encode("cp1252"), "ASCII\n" * 20_000 + "Müller\n"),
        (b"ASCII " * 20_000 + "50 °C".encode("cp1252"), "ASCII " * 20_000 + "50 °C"),
        ("Für Köln\n".encode("cp1252") * 20 + b"\x81", "Für Köln\n" * 20 + "\ufffd"),
    ],
)
def test_a_damaged_byte_leaves_the_rest(data: bytes, expected: str) -> None:
    assert decode(data) == decode(data, "utf-8") == expected


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Die Müller GmbH hat ihren Sitz in München."),
        ("cp1252", "Preis: 50 €"),
        ("cp1252", "½ m³ à 20 €, 50 °C ± 2"),
        ("cp1252", "id,name\n1,Größenänderung\n"),
        ("cp1252", "Le café est fermé à midi."),
        ("cp1252", "Pour la sécurité, le déjeuner sera servi à l’hôtel – merci d’arriver tôt."),
        ("cp1252", "El niño comió una manzana mañana."),
        ("cp1252", "A implementação da solução não está concluída. " * 200),
        ("cp1252", "Perché la città è così bella? Più tardi andrò all’università."),
        ("cp1252", "Blåbær og rødgrød med fløde på Ærø."),
        ("cp1252", "Työpäivä päättyy kello neljä. Hyvää päivää!"),
        ("cp1252", "Þórður býr á Íslandi og á ættingja í Reykjavík."),
        ("cp1252", "Voilà l’été, ça sera bientôt. Die Straße ist groß, schöne Grüße, Öl und Äpfel."),
        ("cp1250", "Zaměstnanci dostávají mzdu poslední den v měsíci. Cesty musí být schváleny předem."),
        ("cp1250", "Cena: 50 zł za sztukę. Usługa dostępna w Łodzi."),
        ("cp1250", "Kérjük, olvassa el a használati útmutatót. Árvíztűrő tükörfúrógép."),
        ("iso8859-2", "Szanowni Państwo, zamówienie zostało złożone. Proszę się zgłosić, aby ustalić termin."),
        ("cp1251", "Цена: 50 рублей"),
        ("koi8-r", "Сотрудники получают зарплату в последний день месяца."),
        ("iso8859-5", "Иван Пешић, запослени примају плату последњег дана у месецу."),
        ("cp866", "Сотрудники получают зарплату в последний день месяца."),
        ("cp1253", "Οι εργαζόμενοι λαμβάνουν τον μισθό τους την τελευταία ημέρα του μήνα."),
        ("cp1254", "Çalışanlar maaşlarını ayın son günü alır. İstanbul’da ağaç."),
        ("cp1255", "העובדים מקבלים את שכרם ביום האחרון של החודש."),
        ("cp1256", "يتلقى الموظفون رواتبهم في اليوم الأخير من الشهر."),
        ("cp1257", "Darbuotojai gauna atlyginimą paskutinę mėnesio dieną. Žąsų šėšėlis."),
        ("cp850", "Die Müller GmbH hat ihren Sitz in München und beschäftigt 50 Mitarbeiter."),
        ("mac-roman", "Das Gerät überprüft automatisch, ob die Tür geschlossen ist."),
        ("cp932", "従業員は毎月の最終日に給与を受け取ります。"),
        ("euc-jp", "従業員は毎月の最終日に給与を受け取ります。出張は事前に承認される必要があります。"),
        ("gbk", "员工在每月的最后一天领取工资。出差必须事先批准，费用必须有凭证。"),
        ("big5", "員工在每月的最後一天領取工資。出差必須事先批准。"),
        ("cp949", "직원들은 매월 말일에 급여를 받습니다."),
    ],
)
def test_an_undeclared_encoding_is_guessed(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("charset", "encoding", "text"),
    [
        ("koi8-r", "koi8-r", "Привет, мир"),
        ("ISO-8859-1", "cp1252", "“price” – 50 €"),
        ("us-ascii", "cp1252", "“price” – 50 €"),
        ("iso-8859-15", "iso-8859-15", "Preis: 50 €"),
        ("iso-8859-9", "cp1254", "İstanbul “güzel” şehir"),
        ("iso-8859-8-i", "iso-8859-8", "שלום עולם"),
        ("windows-874", "cp874", "ภาษาไทย"),
        ("gb2312", "gbk", "朱镕基总理的报告，會議"),
        ("shift_jis", "cp932", "第①章"),
        ("x-sjis", "cp932", "第①章"),
        ("windows-31j", "cp932", "第①章"),
        ("euc-kr", "cp949", "똠방각하는"),
        ("big5", "big5hkscs", "裏面有一些字"),
        ("x-mac-cyrillic", "mac-cyrillic", "Привет мир"),
        ("iso-2022-jp", "iso-2022-jp", "日本語の文書です。"),
        ("utf-7", "utf-7", "Grüße"),
        ("utf-16", "utf-16-le", "日本語の文書 です。" * 9),
        ("utf-16", "cp1252", "Für die Prüfung!"),
        ("unicode", "cp1252", "Für die Prüfung!"),
        ("koi8-r", "utf-8", "Привет, мир"),
    ],
)
def test_a_declared_encoding_is_read_as_browsers_do(charset: str, encoding: str, text: str) -> None:
    assert decode(text.encode(encoding), charset) == text


def test_a_declared_encoding_may_not_define_all_bytes() -> None:
    assert decode(b"50 \x80 \x81", "windows-1252") == "50 € \ufffd"


def test_documents_declare_their_encoding() -> None:
    assert document("Привет, мир".encode("koi8-r"), "page", "text/plain; charset=koi8-r").text == "Привет, мир"
    page = '<html><meta charset="windows-1251"><p>Привет, мир'.encode("cp1251")
    assert document(page, "a.html").text == "Привет, мир"


@pytest.mark.parametrize("data", [b"Hello\0w\xe9rld", b"\x01\xe9\xf3\x02", bytes(range(1, 256)) * 9])
def test_binary_data_is_not_text(data: bytes) -> None:
    assert decode(data) is decode(data, "cp1252") is None
    with pytest.raises(ParseError, match="is not text"):
        parse(Blob(data), "a.txt")
