"""Choose the backend that runs an embedding network: measured once per machine and model, then stored.

The result is stored in a file in the user's cache folder. Without that file, the backends are measured again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ragfm.core.cache import cache_folder, read_json, replace_file
from ragfm.core.types import Vectors
from ragfm.embedders.networks import Backend, Network, TokenizedTexts
from ragfm.models.hardware import compute_threads, cpu_info, has_gpu
from ragfm.samples import handbook_text

MIN_COSINE = 0.999
"""Every text's vector must have at least this cosine to its fp32 vector."""
REFERENCE_TEXTS = 8
"""Sample texts that the exact backend is timed with, and that vectors are compared on."""
TIMED_TEXTS = 80
"""Sample texts that the other backends are timed with: they run several batches in parallel."""
ROUNDS = 2
"""Times each backend is timed, alternating. The best time counts, since other load only makes it longer."""
BACKENDS_VERSION = 2
"""Increase it when a backend changes, so that stored choices are measured again."""
_LIBRARIES = ("numpy", "torch", "openvino", "sentence-transformers")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Throughput of a backend on the sample, and the lowest cosine of a text's vector to fp32.

    `form` is the name of the backend. `error` says why it cannot run here; empty if it can.
    """

    form: str
    texts_per_second: float = 0.0
    tokens_per_second: float = 0.0
    lowest_cosine: float = 0.0
    error: str = ""


def measure(network: Network, tokenize: Callable[[Sequence[str]], TokenizedTexts]) -> list[Measurement]:
    """Measure each backend on the same sample texts; the exact one comes first.

    A backend that fails is listed with the error and without figures.
    """
    # Passages of 300 to 900 characters.
    text = handbook_text()
    starts = range(0, len(text) - 900, 90)
    sample = [text[start : start + 300 + 150 * (n * 3 % 5)] for n, start in enumerate(starts)]
    reference_texts = tokenize(sample[:REFERENCE_TEXTS])
    exact_name, *other_names = network.backends()
    exact = network.load(exact_name)
    reference = exact(reference_texts)
    exact_runs = [_timed(exact, reference_texts)]

    backends: dict[str, Backend] = {}
    failed: list[Measurement] = []
    for name in other_names:
        try:
            backends[name] = network.load(name)
            backends[name](reference_texts)  # warm up
        except Exception as error:  # libraries raise errors of any type when the hardware does not support them
            backends.pop(name, None)
            _log.debug("The embedding backend %s failed.", name, exc_info=True)
            failed.append(Measurement(name, error=f"{type(error).__name__}: {error}"))
    if not backends:
        return [_measurement(exact_name, exact_runs, reference_texts, reference), *failed]

    texts = tokenize(sample[:TIMED_TEXTS])
    rounds = [{name: _timed(backend, texts) for name, backend in backends.items()} for _ in range(ROUNDS)]
    exact_runs += [_timed(exact, reference_texts) for _ in range(ROUNDS - 1)]
    measured = [_measurement(name, [runs[name] for runs in rounds], texts, reference) for name in backends]
    return [_measurement(exact_name, exact_runs, reference_texts, reference), *measured, *failed]


def _timed(backend: Backend, texts: TokenizedTexts) -> tuple[float, Vectors]:
    start = time.perf_counter()
    vectors = backend(texts)
    return time.perf_counter() - start, vectors


def _measurement(
    name: str, runs: Sequence[tuple[float, Vectors]], texts: TokenizedTexts, reference: Vectors
) -> Measurement:
    seconds = min(seconds for seconds, _ in runs)
    count = len(reference)  # both samples begin with the reference texts
    cosine = min(float(np.nan_to_num((vectors[:count] * reference).sum(1)).min()) for _, vectors in runs)
    tokens = sum(map(len, texts.ids))
    return Measurement(name, round(len(texts.ids) / seconds, 1), round(tokens / seconds), round(cosine, 6))


def fastest(results: Sequence[Measurement]) -> str:
    """Name of the fastest backend that reaches MIN_COSINE; the first result is the exact backend."""
    exact, *others = results
    candidates = [result for result in others if not result.error and result.lowest_cosine >= MIN_COSINE]
    return max([exact, *candidates], key=lambda result: result.tokens_per_second).form


def load_choice(weights: str) -> str | None:
    """The backend stored for this machine, its library versions and these weights (sha256); None if there is none."""
    entry = _stored(weights)
    return str(entry["form"]) if entry else None


def measured_speed(weights: str) -> float | None:
    """Sample texts per second of the backend stored for these weights, on this machine; None if there is none."""
    entry = _stored(weights)
    chosen = [one for one in entry.get("measured", ()) if one["form"] == entry["form"]]
    return float(chosen[0]["texts_per_second"]) if chosen else None


def _stored(weights: str) -> dict[str, Any]:
    entry = read_json(_path()).get(_key(weights))
    return entry if isinstance(entry, dict) and "form" in entry else {}


@contextmanager
def alone() -> Iterator[bool]:
    """Whether no other process of the user measures; none begins until the block ends.

    Several processes would slow each other down, and each would take as long as one of them.
    """
    path = _path().with_suffix(".lock")
    lock = FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:  # the choice cannot be stored either
        _log.info("The lock %s cannot be used: %s", path, error)
    try:
        yield True
    finally:
        lock.release()


def save_choice(weights: str, results: Sequence[Measurement]) -> None:
    """Store the measurements and the fastest backend. A file that cannot be written is logged, not an error."""
    path = _path()
    entry = {"form": fastest(results), "machine": machine_info(), "measured": [asdict(result) for result in results]}
    try:
        replace_file(path, json.dumps({**read_json(path), _key(weights): entry}, indent=1).encode())
    except OSError as error:
        _log.info("The choice of an embedding backend cannot be stored in %s: %s", path, error)


def machine_info() -> dict[str, Any]:
    """Everything apart from the weights that a choice depends on: hardware and library versions."""
    info = {"processor": cpu_info()[0], "cores": compute_threads(), "gpu": has_gpu(), "forms": BACKENDS_VERSION}
    for name in _LIBRARIES:
        try:
            info[name] = version(name)
        except PackageNotFoundError:
            info[name] = ""
    return info


def _path() -> Path:
    return cache_folder() / "forms.json"


def _key(weights: str) -> str:
    return blake2b(json.dumps([weights, machine_info()], sort_keys=True).encode(), digest_size=12).hexdigest()
