"""Requantise a GGUF model to the weight format that runs fastest on this machine.

Processors multiply some quantised formats much faster than others. `optimize` makes each format, times it, and measures
the perplexity of a sample text. The fastest format without a relevant loss is kept in the user's cache folder, and the
reader uses it from then on.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragfm.core.cache import cache_folder, file_identity, read_json, replace_file
from ragfm.core.errors import RagfmError
from ragfm.core.own_thread import in_own_thread
from ragfm.generation.readers.engine import PREFILL_BLOCK, BatchToken
from ragfm.generation.readers.llama_context import LlamaContext
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.models.hardware import physical_cores
from ragfm.models.llama_library import last_error, llama_cpp
from ragfm.models.model_lookup import is_pinned, weights_sha256
from ragfm.models.thread_count import ThreadCount
from ragfm.samples import handbook_text

MAX_PERPLEXITY_RATIO = 1.05
"""Highest accepted perplexity, relative to that of the original file."""
WEIGHT_FORMATS = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "IQ4_NL": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_NL,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
"""The formats that are tried, with llama.cpp's numbers for them."""
_SAMPLE_TOKENS = 512
_DECODE_STEPS = 24
_TYPICAL_PROMPT, _TYPICAL_ANSWER = 1000, 100
"""Tokens of a typical request, by which the formats are ranked."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FormatMeasurement:
    """Size, speed and perplexity of a weight format. `agreement` is the share of positions with the same best token."""

    name: str
    megabytes: float
    prompt_tokens_per_second: float
    tokens_per_second: float
    perplexity: float
    agreement: float

    @property
    def seconds(self) -> float:
        """Duration of a typical request."""
        return _TYPICAL_PROMPT / self.prompt_tokens_per_second + _TYPICAL_ANSWER / self.tokens_per_second


def optimized_file(path: Path) -> Path | None:
    """The file to use instead of a model's own, if `optimize` chose one and it is intact."""
    record = read_optimization(path)
    if not record.get("file"):
        return None
    file = _folder() / str(record["file"])
    if file.is_file() and file.stat().st_size == record.get("bytes"):
        return file
    _log.warning("The optimized file %s of %s is missing or incomplete. Using the model's own file.", file, path)
    return None


def read_optimization(path: Path) -> Mapping[str, Any]:
    """The saved result of `optimize` for a model on this machine; empty if there is none."""
    return read_json(_record_file(path))


def undo_optimization(path: Path) -> None:
    """Use a model's own file again, and delete the optimized one."""
    if file := read_optimization(path).get("file"):
        (_folder() / Path(str(file)).name).unlink(missing_ok=True)
    _record_file(path).unlink(missing_ok=True)


def optimize(path: Path) -> tuple[list[FormatMeasurement], FormatMeasurement]:
    """Make and measure all formats of a model, and keep the best one for the reader.

    Returns the measurements, that of the original file first, and the best one. Raises RagfmError if a format cannot be
    made or kept, DamagedModelError if the model cannot be loaded.
    """
    original, original_tokens = _measure("as it is", path, None)
    measurements = [original]
    files: dict[str, Path] = {}
    # On the same file system as the result, which is then only renamed.
    folder = _folder() / f"making.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "Set XDG_CACHE_HOME to a writable folder."
        raise RagfmError(f"Cannot create the folder '{folder}': {error}.", hint) from error
    try:
        for name, ftype in WEIGHT_FORMATS.items():
            files[name] = quantize(path, folder / f"{name}.gguf", ftype)
            measurements.append(_measure(name, files[name], original_tokens)[0])
        limit = MAX_PERPLEXITY_RATIO * original.perplexity
        accepted = [measurement for measurement in measurements if measurement.perplexity <= limit]
        best = min(accepted, key=lambda measurement: measurement.seconds)

        # Replace the earlier result: first the file, then the record that names it, each atomically.
        undo_optimization(path)
        sha256 = weights_sha256(path)
        record: dict[str, Any] = {"model": str(path), "sha256": sha256, "form": best.name}
        record["forms"] = [asdict(measurement) for measurement in measurements]
        if file := files.get(best.name):
            record["file"], record["bytes"] = f"{sha256[:32]}-{best.name}.gguf", file.stat().st_size
            file.replace(_folder() / record["file"])
        replace_file(_record_file(path), json.dumps(record, indent=1).encode())
    finally:
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()
    return measurements, best


@in_own_thread
def quantize(source: Path, target: Path, ftype: int) -> Path:
    """Write a GGUF file in another format, a value of `WEIGHT_FORMATS`. Raises RagfmError."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = ftype, True, physical_cores()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RagfmError(
            f"llama.cpp cannot write '{source}' as {target.stem}: {last_error()}.", "Check that the disk has room."
        )
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return target


@in_own_thread
def _measure(name: str, path: Path, reference: list[int] | None) -> tuple[FormatMeasurement, list[int]]:
    """The measurement of a file, and its best token at each position of the sample text."""
    model = LlamaModel(path)
    context = LlamaContext(model, 1, _SAMPLE_TOKENS + 2 * _DECODE_STEPS, ThreadCount(physical_cores()))
    tokens = model.tokenize(handbook_text())[:_SAMPLE_TOKENS]
    losses: list[float] = []  # the negative log-likelihood of each token after the first
    best_tokens: list[int] = []
    for start in range(0, len(tokens), PREFILL_BLOCK):
        block = tokens[start : start + PREFILL_BLOCK]
        rows = context.evaluate([BatchToken(token, start + index, 0, True) for index, token in enumerate(block)])
        for logits, following in zip(rows, tokens[start + 1 : start + PREFILL_BLOCK + 1], strict=False):
            best = int(logits.argmax())
            best_tokens.append(best)
            log_sum = math.log(float(np.exp(logits - logits[best]).sum()))
            losses.append(log_sum + float(logits[best] - logits[following]))
    prompt_speeds, step_seconds = [], []
    for _ in range(3):  # the fastest counts: other programs may be running
        context.truncate(0, 0)
        began = time.perf_counter()
        for first in range(0, len(tokens), PREFILL_BLOCK):
            block = tokens[first : first + PREFILL_BLOCK]
            context.evaluate([BatchToken(token, first + index, 0, False) for index, token in enumerate(block)])
        prompt_speeds.append(len(tokens) / (time.perf_counter() - began))
        for position in range(len(tokens), len(tokens) + _DECODE_STEPS):
            began = time.perf_counter()
            context.evaluate([BatchToken(tokens[0], position, 0, True)])
            step_seconds.append(time.perf_counter() - began)
    agreement = np.mean(np.equal(best_tokens, reference)) if reference else 1.0
    measurement = FormatMeasurement(
        name=name,
        megabytes=round(path.stat().st_size / 1e6, 1),
        prompt_tokens_per_second=round(max(prompt_speeds), 1),
        tokens_per_second=round(1 / sorted(step_seconds)[len(step_seconds) // 4], 1),
        perplexity=round(math.exp(sum(losses) / len(losses)), 3),
        agreement=round(float(agreement), 3),
    )
    return measurement, best_tokens


def _folder() -> Path:
    return cache_folder() / "models"


def _record_file(path: Path) -> Path:
    """Named after a bundled model's hash, wherever it is installed; else after the file's path, size and time."""
    return _folder() / f"{weights_sha256(path)[:32] if is_pinned(path) else file_identity(path)}.json"
