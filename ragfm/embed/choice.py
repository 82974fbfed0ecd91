"""Which form of a network to use: measured once for a machine and a model, and remembered.

The memory is a file in the user's cache folder; without it, or where it can't be written, the form is measured again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.cache import cache_folder
from ragfm.embed.network import cores, has_gpu, processor
from ragfm.samples import HANDBOOK

if TYPE_CHECKING:
    from ragfm.embed.network import Network, Tokenised

__all__ = ["EXACT_ENOUGH", "Measured", "fastest", "machine", "measure", "recall", "remember"]

EXACT_ENOUGH = 0.999
"""The least cosine to fp32 that the vector of every text must have."""
SECONDS = 0.4
"""About how long each form is timed."""
VERSION = 1
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
    tokenised = tokenise(_sample()[:4])
    exact, *others = network.forms()
    run = network.load(exact)
    run(tokenised)
    start = time.perf_counter()
    run(tokenised)
    each = (time.perf_counter() - start) / 4
    tokenised = tokenise(_sample()[: max(8, int(SECONDS / each))])
    reference = run(tokenised)
    results = [_time(exact, run, tokenised, reference)]
    for form in others:
        try:
            run = network.load(form)
            run(tokenised)  # the first time it prepares
            results.append(_time(form, run, tokenised, reference))
        except Exception as error:  # a library of its own kind of failure: the form is not there
            _log.debug("The form %s failed.", form, exc_info=True)
            results.append(Measured(form, error=f"{type(error).__name__}: {error}"))
    return results


def fastest(results: Sequence[Measured]) -> str:
    """The name of the fastest form that is exact enough; the first of them is."""
    exact, *others = results
    enough = [result for result in others if not result.error and result.lowest_cosine >= EXACT_ENOUGH]
    return max([exact, *enough], key=lambda result: result.tokens_per_second).form


def recall(weights: str) -> str | None:
    """The form that was chosen on this machine, with these libraries, for these weights."""
    chosen = _memory().get(_key(weights))
    return str(chosen["form"]) if isinstance(chosen, dict) and "form" in chosen else None


def remember(weights: str, results: Sequence[Measured]) -> None:
    """Keep what was measured, and what follows from it."""
    path = _path()
    entry = {"form": fastest(results), "machine": machine(), "measured": [asdict(result) for result in results]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps({**_memory(), _key(weights): entry}, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        _log.info("The choice of an embedding form can't be kept in %s: %s", path, error)


def machine() -> dict[str, Any]:
    """What a choice depends on, besides the weights."""
    return {"processor": processor()[0], "cores": cores(), "gpu": has_gpu(), "forms": VERSION,
            **{name: _version(name) for name in _LIBRARIES}}  # fmt: skip


def _time(form: str, run: Callable[[Tokenised], Any], tokenised: Tokenised, reference: Any) -> Measured:
    start = time.perf_counter()
    vectors = run(tokenised)
    seconds = time.perf_counter() - start
    cosine = float(np.nan_to_num((vectors * reference).sum(1)).min())
    texts, tokens = len(tokenised.ids), sum(map(len, tokenised.ids))
    return Measured(form, round(texts / seconds, 1), round(tokens / seconds), round(cosine, 6))


def _sample() -> list[str]:
    """Passages of the sample handbook, of 100 to 900 characters."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(HANDBOOK.glob("*.md")))
    starts = range(0, len(text) - 900, 200)
    return [text[start : start + 100 + 200 * (place * 3 % 5)] for place, start in enumerate(starts)]


def _path() -> Path:
    return cache_folder() / "forms.json"


def _memory() -> Mapping[str, Any]:
    try:
        memory = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _key(weights: str) -> str:
    return blake2b(json.dumps([weights, machine()], sort_keys=True).encode(), digest_size=12).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
