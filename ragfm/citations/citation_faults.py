"""Faults: what is wrong with a citation that does not hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ragfm.citations.evidence import FEWEST, Asked, Claim, Evidence, Window, found_words, new_words, place, quotations

if TYPE_CHECKING:
    from ragfm.core.types import Fault, Hit


def fault_of(
    claim: Claim, asked: Asked, best: Evidence | None, windows: Mapping[int, Sequence[Window]], named: Hit
) -> Fault:
    """Why the passage `named` does not support a claim. `best` is the best evidence from all passages."""
    texts = [some[0].hit.text for some in windows.values() if some]
    missing = [quotation for quotation in quotations(claim.text) if not place(quotation, named.text)]
    if missing:
        if any(all(place(quotation, text) for quotation in missing) for text in texts):
            return "misattributed"
        return "stitched" if all(_is_stitched(quotation, texts) for quotation in missing) else "fabricated"
    if best and best.supports:
        return "misattributed"
    new = new_words(claim, asked)
    every = [window for some in windows.values() for window in some]
    anywhere = set[str]().union(*(found_words(claim, new, window) for window in every))
    alone = any(len(found_words(claim, new, window)) == len(anywhere) for window in every)
    return "stitched" if new and anywhere == new and not alone else "fabricated"


def _is_stitched(quotation: str, texts: Collection[str]) -> bool:
    """Whether a quotation is made of pieces that stand verbatim in the passages, each of three words or more."""
    words = quotation.split()
    reachable = {0}
    for end in range(FEWEST, len(words) + 1):
        if any(place(" ".join(words[start:end]), text) for start in reachable if end - start >= FEWEST
               for text in texts):  # fmt: skip
            reachable.add(end)
    return len(words) in reachable
