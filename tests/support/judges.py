"""Which judge tests use: a scripted one, or for those marked `judge` the one that ships."""

from __future__ import annotations

from pathlib import Path

from ragfm.answering import confidence, judge
from ragfm.core.calibration import Calibration
from ragfm.testing import ScriptedJudge

_Judge, _find_judge, _DEFAULT = judge.Judge, judge.find_judge, confidence.DEFAULT
HAS_JUDGE = (judge.SHIPPED / "judge-small" / judge.WEIGHTS).is_file()
NO_CONFIDENCE = Calibration(reader="", bias=0.0, weights={}, means={}, threshold=0.0)


def use_judge(*, scripted: bool) -> None:
    """Let `load_judge` return a scripted judge for the name `small`, or the one that ships.

    Next to a scripted one, answers have no confidence: scripted readers say anything.
    """
    if scripted is (judge.Judge is not _Judge):
        return
    judge.load_judge.cache_clear()
    changed = {"Judge": lambda *_: ScriptedJudge(), "find_judge": _find_scripted} if scripted else {}
    for name, value in ({"Judge": _Judge, "find_judge": _find_judge} | changed).items():
        setattr(judge, name, value)
    confidence.DEFAULT = NO_CONFIDENCE if scripted else _DEFAULT


def _find_scripted(name: str) -> Path:
    return Path(name) if name == judge.SMALL else _find_judge(name)
