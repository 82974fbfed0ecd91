"""Which judge tests use: a scripted one, or for those marked `judge` the one that ships."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ragfm.answering import confidence, judge
from ragfm.answering.judge import Evidence, Judgement, Part
from ragfm.answering.units import words
from ragfm.core.calibration import Calibration
from ragfm.models.model_lookup import find_model, weights_sha256

_Judge, _find_judge, _DEFAULT = judge.Judge, judge.find_judge, confidence.DEFAULT
HAS_JUDGE = (judge.SHIPPED / "judge-small" / judge.WEIGHTS).is_file()
_SCRIPTED = (Path(judge.SMALL), Path(judge.LARGE))
NO_CONFIDENCE = Calibration(reader="", bias=0.0, weights={}, means={}, threshold=0.0)

_TOKEN = re.compile(r"\w+|[^\w\s]")


class ScriptedJudge(judge.Judge):
    """A judge without a network, for `Rag.judge`.

    `answers` maps answers to their probabilities, for all evidence or by a function of it. A text answers a question
    with the likeliest one that it contains, at its first place. `supports` and `contradicts` give the probabilities for
    a statement, with which a text is taken to answer the question. By default, a text supports a statement if it or its
    context has half of the words that the question lacks, and contradicts none.
    """

    def __init__(
        self,
        answers: Mapping[str, float] | Callable[[Evidence], Mapping[str, float]] | None = None,
        *,
        supports: Callable[[Evidence], float] | None = None,
        contradicts: Callable[[Evidence], float] | None = None,
    ) -> None:
        self._answers, self._supports, self._contradicts = answers or {}, supports or _shares_words, contradicts

    @cached_property
    def sha256(self) -> str:
        """Stands for weights."""
        return "scripted"

    def load(self) -> None:
        """Nothing is loaded."""

    def warm_up(self) -> None:
        """Nothing is loaded."""

    def read(self, evidence: Sequence[Evidence], *, fast: bool = False) -> list[Judgement]:
        """A judgement of each text, in one part."""
        return [self._judgement(one) for one in evidence]

    def _judgement(self, evidence: Evidence) -> Judgement:
        answers = self._answers(evidence) if callable(self._answers) else self._answers
        found = [(chance, answer) for answer, chance in answers.items() if answer in evidence.text]
        likelihood, answer = max(found, default=(0.0, ""))
        start = evidence.text.find(answer)
        tokens = [match.span() for match in _TOKEN.finditer(answer)]
        spans = np.array(tokens, dtype=np.int64).reshape(-1, 2) + start
        first, last = np.zeros((2, len(spans)), dtype=np.float32)
        first[:1] = last[-1:] = likelihood**0.5
        contradicts = self._contradicts(evidence) if self._contradicts else 0.0
        supports = min(self._supports(evidence), 1 - contradicts)
        nowhere = 0.0 if evidence.statement else 1 - likelihood
        return Judgement((Part(spans, first, last, nowhere),), supports, contradicts)


def _shares_words(evidence: Evidence) -> float:
    stated, asked = words(evidence.statement), words(evidence.question)
    wanted = stated - asked or stated
    for likelihood, text in ((0.95, evidence.text), (0.92, f"{evidence.context} {evidence.text}")):
        if wanted and 2 * len(wanted & words(text)) >= len(wanted):
            return likelihood
    return 0.1


def use_judge(*, scripted: bool) -> None:
    """Let `load_judge` return a scripted judge for the names `small` and `base`, or the one that ships.

    Next to a scripted one, answers have no confidence: scripted readers say anything.
    """
    if scripted is (judge.Judge is not _Judge):
        return
    judge.load_judge.cache_clear()
    changed = {"Judge": _judge, "find_judge": _find_scripted} if scripted else {}
    for name, value in ({"Judge": _Judge, "find_judge": _find_judge} | changed).items():
        setattr(judge, name, value)
    confidence.DEFAULT = NO_CONFIDENCE if scripted else _DEFAULT


def random_judge(folder: Path) -> judge.Judge:
    """A network with random heads, which leave the embedding model as it is."""
    return _Judge(write_random_judge(folder), find_model("bundled", "embedder"))


def write_random_judge(folder: Path, base: str = "") -> Path:
    """Write the weights of a random judge for an embedding model with the hash `base`, or the bundled one."""
    rng, width = np.random.default_rng(0), 384
    shapes = {"span": (2, width), "pool": (width, width), "stance": (3, width), "stated": (1, width), "least": (4, 1)}
    tensors = {f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float16) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[0], np.float16) for name, shape in shapes.items() if name != "least"}
    base = base or weights_sha256(find_model("bundled", "embedder"))
    save_file(tensors, folder / judge.WEIGHTS, {judge.BASE: base})
    return folder


def _judge(folder: Path, base: Path) -> judge.Judge:
    return ScriptedJudge() if folder in _SCRIPTED else _Judge(folder, base)


def _find_scripted(name: str) -> tuple[Path, Path]:
    return (Path(name), Path()) if Path(name) in _SCRIPTED else _find_judge(name)
