"""Which form of a network to use: measured once for a machine and a model, and remembered.

The memory is a file in the user's cache folder; without it, or where it can't be written, the form is measured again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.core.cache import cache_folder, read_json, replace_file
from ragfm.models.hardware import cpu_info, has_gpu, openmp_threads
from ragfm.models.sample_text import SAMPLE_TEXT

if TYPE_CHECKING:
    from ragfm.embedders.networks import Network, Tokenised

__all__ = ["EXACT_ENOUGH", "Measured", "fastest", "machine", "measure", "recall", "remember"]

EXACT_ENOUGH = 0.999
"""The least cosine to fp32 that the vector of every text must have."""
FEW, MANY = 8, 80
"""Texts that the exact form is timed with, and the others: these run several batches at once, and need that many."""
ROUNDS = 2
"""How often each form is timed, in turns; the better time counts, since whatever else runs only makes it longer."""
VERSION = 2
"""Of the forms: what was remembered of another is measured again."""
_LIBRARIES = ("numpy", "torch", "openvino", "sentence-transformers")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    """A form's rates over the sample, and the lowest cosine of a text's vector to fp32; why, where it is not there."""

    form: str
    texts_per_second: float = 0.0
    tokens_per_second: float = 0.0
    lowest_cosine: float = 0.0
    error: str = ""


def measure(network: Network, tokenise: Callable[[Sequence[str]], Tokenised]) -> list[Measured]:
    """Each form over the same sample, the exact one first; a form that fails is listed with why, and no more."""
    few = tokenise(_sample()[:FEW])
    exact, *others = network.forms()
    run = network.load(exact)
    reference = run(few)
    timed = [_timed(run, few)]
    runs: dict[str, Callable[[Tokenised], Any]] = {}
    failed: list[Measured] = []
    for form in others:
        try:
            runs[form] = network.load(form)
            runs[form](few)  # the first time it prepares
        except Exception as error:  # a library of its own kind of failure: the form is not there
            runs.pop(form, None)
            _log.debug("The form %s failed.", form, exc_info=True)
            failed.append(Measured(form, error=f"{type(error).__name__}: {error}"))
    if not runs:
        return [_measured(exact, timed, few, reference), *failed]
    many = tokenise(_sample()[:MANY])
    rounds = [{form: _timed(run, many) for form, run in runs.items()} for _ in range(ROUNDS)]
    timed += [_timed(run, few) for _ in range(ROUNDS - 1)]
    measured = [_measured(form, [times[form] for times in rounds], many, reference) for form in runs]
    return [_measured(exact, timed, few, reference), *measured, *failed]


def fastest(results: Sequence[Measured]) -> str:
    """The name of the fastest form that is exact enough; the first of them is."""
    exact, *others = results
    enough = [result for result in others if not result.error and result.lowest_cosine >= EXACT_ENOUGH]
    return max([exact, *enough], key=lambda result: result.tokens_per_second).form


def recall(weights: str) -> str | None:
    """The form that was chosen on this machine, with these libraries, for these weights."""
    chosen = read_json(_path()).get(_key(weights))
    return str(chosen["form"]) if isinstance(chosen, dict) and "form" in chosen else None


def remember(weights: str, results: Sequence[Measured]) -> None:
    """Keep what was measured, and what follows from it."""
    path = _path()
    entry = {"form": fastest(results), "machine": machine(), "measured": [asdict(result) for result in results]}
    try:
        replace_file(path, json.dumps({**read_json(path), _key(weights): entry}, indent=1).encode())
    except OSError as error:
        _log.info("The choice of an embedding form can't be kept in %s: %s", path, error)


def machine() -> dict[str, Any]:
    """What a choice depends on, besides the weights."""
    return {"processor": cpu_info()[0], "cores": openmp_threads(), "gpu": has_gpu(), "forms": VERSION,
            **{name: _version(name) for name in _LIBRARIES}}  # fmt: skip


def _timed(run: Callable[[Tokenised], Any], tokenised: Tokenised) -> tuple[float, Any]:
    start = time.perf_counter()
    vectors = run(tokenised)
    return time.perf_counter() - start, vectors


def _measured(form: str, timed: Sequence[tuple[float, Any]], tokenised: Tokenised, reference: Any) -> Measured:
    seconds = min(seconds for seconds, _ in timed)
    exact = len(reference)  # the texts that come first in either sample
    cosine = min(float(np.nan_to_num((vectors[:exact] * reference).sum(1)).min()) for _, vectors in timed)
    texts, tokens = len(tokenised.ids), sum(map(len, tokenised.ids))
    return Measured(form, round(texts / seconds, 1), round(tokens / seconds), round(cosine, 6))


def _sample() -> list[str]:
    """Passages of the sample text, of 300 to 900 characters."""
    text = SAMPLE_TEXT
    starts = range(0, len(text) - 900, 60)
    return [text[start : start + 300 + 150 * (place * 3 % 5)] for place, start in enumerate(starts)]


def _path() -> Path:
    return cache_folder() / "forms.json"


def _key(weights: str) -> str:
    return blake2b(json.dumps([weights, machine()], sort_keys=True).encode(), digest_size=12).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
