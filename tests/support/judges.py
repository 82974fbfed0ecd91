"""Which judge tests use: a scripted one, or for those marked `judge` the one that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ragfm.answering import confidence, judge
from ragfm.core.calibration import Calibration
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.testing import ScriptedJudge

_Judge, _find_judge, _DEFAULT = judge.Judge, judge.find_judge, confidence.DEFAULT
HAS_JUDGE = (judge.SHIPPED / "judge-small" / judge.WEIGHTS).is_file()
_SCRIPTED = (Path(judge.SMALL), Path(judge.LARGE))
NO_CONFIDENCE = Calibration(reader="", bias=0.0, weights={}, means={}, threshold=0.0)


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
