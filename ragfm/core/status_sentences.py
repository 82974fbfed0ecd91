"""What an answer says about itself, in the languages that the keyword index detects."""

from __future__ import annotations

from typing import NamedTuple


class StatusSentences(NamedTuple):
    """The sentences of one language.

    - `unknown`: the answer where the passages do not have one.
    - `unsure`: before a quote that takes the place of an unsure answer.
    - `quoting`: before the colon of a quote.
    - `doubt`: below an unsure answer.
    """

    unknown: str
    unsure: str
    quoting: str
    doubt: str


ENGLISH = StatusSentences("I don't know.", "I am not sure.", "The documents say", "I am not sure of this.")
_BY_LANGUAGE = {
    language: StatusSentences(*(sentence.strip() for sentence in line.split("|")))
    for language, line in {
        "ar": "لا أعرف. | لست متأكدًا. | تقول المستندات | لست متأكدًا من هذا.",
        "da": "Det ved jeg ikke. | Jeg er ikke sikker. | I dokumenterne står der | Det er jeg ikke sikker på.",
        "de": "Das weiß ich nicht. | Ich bin nicht sicher. | In den Dokumenten steht | Dessen bin ich nicht sicher.",
        "es": "No lo sé. | No estoy seguro. | Los documentos dicen | No estoy seguro de esto.",
        "fi": "En tiedä. | En ole varma. | Asiakirjoissa sanotaan | En ole varma tästä.",
        "fr": "Je ne sais pas. | Je ne suis pas sûr. | Les documents disent | Je n'en suis pas sûr.",
        "hu": "Nem tudom. | Nem vagyok biztos benne. | A dokumentumokban ez áll | Ebben nem vagyok biztos.",
        "id": "Saya tidak tahu. | Saya tidak yakin. | Dokumen menyatakan | Saya tidak yakin tentang ini.",
        "it": "Non lo so. | Non sono sicuro. | I documenti dicono | Non ne sono sicuro.",
        "ja": "わかりません。 | 確かではありません。 | 文書にはこう書かれています | これについては確かではありません。",
        "ko": "모르겠습니다. | 확실하지 않습니다. | 문서에는 이렇게 나와 있습니다 | 이 점은 확실하지 않습니다.",
        "nl": "Dat weet ik niet. | Ik ben niet zeker. | In de documenten staat | Hier ben ik niet zeker van.",
        "no": "Det vet jeg ikke. | Jeg er ikke sikker. | I dokumentene står det | Det er jeg ikke sikker på.",
        "pl": "Nie wiem. | Nie mam pewności. | W dokumentach jest napisane | Nie mam co do tego pewności.",
        "pt": "Não sei. | Não tenho certeza. | Os documentos dizem | Não tenho certeza disso.",
        "ro": "Nu știu. | Nu sunt sigur. | Documentele spun | Nu sunt sigur de acest lucru.",
        "ru": "Я не знаю. | Я не уверен. | В документах сказано | Я в этом не уверен.",
        "sv": "Det vet jag inte. | Jag är inte säker. | I dokumenten står det | Det är jag inte säker på.",
        "th": "ไม่ทราบ | ไม่แน่ใจ | ในเอกสารระบุว่า | ไม่แน่ใจในเรื่องนี้",
        "tr": "Bilmiyorum. | Emin değilim. | Belgelerde şöyle yazıyor | Bundan emin değilim.",
        "zh": "我不知道。 | 我不确定。 | 文档中写道 | 我对此不确定。",
    }.items()
}
UNKNOWN = frozenset(sentences.unknown.lower() for sentences in _BY_LANGUAGE.values())
"""The abstentions in these languages, in lower case."""


def status_sentences(language: str | None) -> StatusSentences:
    """The sentences in a language (ISO 639-1); in English if they are not known in it."""
    return _BY_LANGUAGE.get(language or "en", ENGLISH)
