"""The form of a model's weights that this machine runs fastest, made from the file that there is.

A processor multiplies some quantisations much faster than others. Each is made, timed, and read a text of which the
model should expect the next token about as well as before. The best one is kept in the user's cache folder, and the
reader uses it from then on.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragfm.core.cache import cache_folder, file_identity, read_json, replace_file
from ragfm.core.errors import RagfmError
from ragfm.generation.readers.llama_context import Context, Row
from ragfm.generation.readers.llama_model import BLOCK, LlamaModel
from ragfm.models.hardware import physical_cores
from ragfm.models.llama_library import last_error, llama_cpp
from ragfm.models.model_lookup import is_pinned, weights_sha256
from ragfm.models.sample_text import SAMPLE_TEXT

__all__ = ["FORMS", "MOST_LOSS", "Form", "forget", "optimize", "optimized", "quantize", "what_was_measured"]

MOST_LOSS = 1.05
"""How much higher the perplexity may be than that of the file as it is."""
FORMS = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "IQ4_NL": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_NL,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
"""What llama.cpp calls the forms that are tried."""
_TOKENS = 512
"""Of the text that is read."""
_STEPS = 24
_PROMPT, _ANSWER = 1000, 100
"""Tokens of a typical request, by which speeds are weighed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Form:
    """A form of the weights: its size and speeds, its perplexity, and how often its best token is the original's."""

    name: str
    megabytes: float
    prompt_tokens_per_second: float
    tokens_per_second: float
    perplexity: float
    agreement: float

    @property
    def seconds(self) -> float:
        """How long a typical request takes."""
        return _PROMPT / self.prompt_tokens_per_second + _ANSWER / self.tokens_per_second


def optimized(path: Path) -> Path | None:
    """The file to use instead of a model's own, where `optimize` found one to be better."""
    kept = what_was_measured(path)
    if not kept.get("file"):
        return None
    better = _folder() / str(kept["file"])
    if better.is_file() and better.stat().st_size == kept.get("bytes"):
        return better
    _log.warning("The optimised file %s of %s is not there or not whole: the model is used as it is.", better, path)
    return None


def what_was_measured(path: Path) -> Mapping[str, Any]:
    """What `optimize` found out about a model on this machine; empty where it was not asked."""
    return read_json(_note(path))


def forget(path: Path) -> None:
    """Use a model as it is again, and delete what was made of it."""
    if made := what_was_measured(path).get("file"):
        (_folder() / Path(str(made)).name).unlink(missing_ok=True)
    _note(path).unlink(missing_ok=True)


def optimize(path: Path) -> tuple[list[Form], Form]:
    """Make and measure the forms of a model, the file as it is first; the best one, which the reader uses from now on.

    Raises RagfmError where a form can't be made or kept, DamagedModelError where the model can't be loaded.
    """
    original, best_tokens = _measure("as it is", path, None)
    forms = [original]
    files: dict[str, Path] = {}
    with _scratch() as folder:
        for name, kind in FORMS.items():
            files[name] = quantize(path, folder / f"{name}.gguf", kind)
            forms.append(_measure(name, files[name], best_tokens)[0])
        good = [form for form in forms if form.perplexity <= MOST_LOSS * original.perplexity]
        best = min(good, key=lambda form: form.seconds)
        forget(path)
        _keep(path, forms, best, files.get(best.name))
    return forms, best


def _keep(path: Path, forms: list[Form], best: Form, made: Path | None) -> None:
    """The file first, then the note that names it, each whole or not at all."""
    sha256 = weights_sha256(path)
    note: dict[str, Any] = {"model": str(path), "sha256": sha256, "form": best.name, "forms": list(map(asdict, forms))}
    if made:
        note["file"], note["bytes"] = f"{sha256[:32]}-{best.name}.gguf", made.stat().st_size
        made.replace(_folder() / note["file"])
    replace_file(_note(path), json.dumps(note, indent=1).encode())


def quantize(source: Path, target: Path, kind: int) -> Path:
    """Write a GGUF file in another form, one of `FORMS`. Raises RagfmError."""
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize, how.nthread = kind, True, physical_cores()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(how)):
        raise RagfmError(f"llama.cpp can't write {source} as {target.stem}: {last_error()}")
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return target


def _measure(name: str, path: Path, reference: list[int] | None) -> tuple[Form, list[int]]:
    """A form, and the token that it expects at each place of the text."""
    model = LlamaModel(path)
    context = Context(model, 1, _TOKENS + 2 * _STEPS, physical_cores())
    tokens = model.tokens(SAMPLE_TEXT)[:_TOKENS]
    loss, expected = _read(context, tokens)
    prompts, steps = [], []
    for _ in range(3):  # the fastest: the machine may do other things too
        context.cut(0, 0)
        start = time.perf_counter()
        for at in range(0, len(tokens), BLOCK):
            context.evaluate([Row(token, at + i, 0, False) for i, token in enumerate(tokens[at : at + BLOCK])])
        prompts.append(len(tokens) / (time.perf_counter() - start))
        for place in range(len(tokens), len(tokens) + _STEPS):
            start = time.perf_counter()
            context.evaluate([Row(tokens[0], place, 0, True)])
            steps.append(time.perf_counter() - start)
    same = np.mean(np.equal(expected, reference)) if reference else 1.0
    form = Form(
        name=name,
        megabytes=round(path.stat().st_size / 1e6, 1),
        prompt_tokens_per_second=round(max(prompts), 1),
        tokens_per_second=round(1 / sorted(steps)[len(steps) // 4], 1),
        perplexity=round(math.exp(loss), 3),
        agreement=round(float(same), 3),
    )
    return form, expected


def _read(context: Context, tokens: list[int]) -> tuple[float, list[int]]:
    """The mean of the negative log-likelihoods of the tokens after the first, and which ones were expected."""
    losses: list[float] = []
    expected: list[int] = []
    for start in range(0, len(tokens), BLOCK):
        rows = [Row(token, start + at, 0, True) for at, token in enumerate(tokens[start : start + BLOCK])]
        for logits, following in zip(context.evaluate(rows), tokens[start + 1 : start + BLOCK + 1], strict=False):
            best = int(logits.argmax())
            expected.append(best)
            losses.append(
                math.log(float(np.exp(logits - logits[best]).sum())) + float(logits[best] - logits[following])
            )
    return sum(losses) / len(losses), expected


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder beside where the result will lie, so that it can be renamed."""
    folder = _folder() / f"making.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RagfmError(
            f"The folder {folder} can't be made: {error}", "Set XDG_CACHE_HOME to one that can."
        ) from error
    try:
        yield folder
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _folder() -> Path:
    return cache_folder() / "models"


def _note(path: Path) -> Path:
    """A pinned model is known by its hash, wherever it is installed; others by where they lie and when they changed."""
    return _folder() / f"{weights_sha256(path)[:32] if is_pinned(path) else file_identity(path)}.json"
