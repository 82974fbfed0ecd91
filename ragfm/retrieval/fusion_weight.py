"""The weight of the cosine in hybrid search; the rest is that of BM25.

An embedding model finds little in a language that it doesn't know, and words find as much as ever. So where no weight
is set, it depends on the model and the language: docs/decisions/013-the-weight-by-language.md has the evidence.
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

__all__ = ["FOREIGN", "USUAL", "explain", "tell_foreign", "usual_weight", "weight_for"]

_log = logging.getLogger(__name__)
USUAL = 0.6
FOREIGN = 0.2
"""Where the model doesn't know the language."""

# AB-1234/5, v2.3.1, 0x3F, 10.5281, an invoice's number; not 1973, nor 28 days
_CODE = re.compile(r"[0-9]{5}|[0-9][A-Za-z_]|[A-Za-z_][0-9]|\w[-./:@&+#][0-9]|[0-9][-./:@&+#]\w")


def weight_for(query: str, settings: SearchSection, *, model: object = None, language: str | None = None) -> float:
    """The weight for a query: the one that is set, else the usual one of model and language.

    `model` is the sha256 of the embedding model's weights, `language` that of the texts. Embeddings can't tell codes
    that look alike, words can: where the query has one, `code_weight` bounds the weight.
    """
    weight = settings.weight
    if weight is None:
        weight = usual_weight(model, language, query)
    return min(weight, settings.code_weight) if _CODE.search(query) else weight


def usual_weight(model: object, language: str | None, query: str = "") -> float:
    """What the weight is where none is set.

    A query in another script is foreign to an English model even where most of the texts are in English.
    """
    return USUAL if is_english(query, language) or not is_english_only(model) else FOREIGN


def explain(settings: SearchSection, contract: Mapping[str, Any], language: str | None) -> tuple[float | None, str]:
    """The weight for most queries, and why it is that; None where none plays a part."""
    if settings.fusion == "rrf":
        return None, "ranks alone count, as it is set."
    if settings.weight is not None:
        return settings.weight, "it is set."
    weight = usual_weight(contract.get("weights"), language)
    if weight == USUAL:
        return weight, "it is the default."
    return weight, (
        f"the documents' language is {language}, and the bundled embedding model knows English only. "
        "`ragfm reembed --embedder intfloat/multilingual-e5-small` switches to one that knows others, too."
    )


def tell_foreign(settings: SearchSection, contract: Mapping[str, Any], language: str | None) -> None:
    """Say where the weight is not the usual one because of the language."""
    weight, why = explain(settings, contract, language)
    if settings.weight is None and weight == FOREIGN:
        _log.warning("Hybrid search goes by words more than by meaning, whose weight is %g: %s", weight, why)
