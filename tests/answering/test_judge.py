"""The judge with weights that nothing was trained on: what it reads, and what it refuses."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.judges import random_judge, write_random_judge

from ragfm.answering import judge as judge_module
from ragfm.answering.judge import (
    WEIGHTS,
    Evidence,
    Judge,
    Judgement,
    Part,
    configured_judge,
    find_judge,
    load_judge,
    with_learned,
)
from ragfm.core.errors import DamagedModelError, ModelNotFoundError, UnsupportedError
from ragfm.embedders.bert import Bert, Layer, Linear
from ragfm.models import judge_base
from ragfm.models.model_lookup import find_model


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return random_judge(tmp_path)


def test_a_judgement_has_probabilities_and_an_answer_between_bounds(judge: Judge) -> None:
    text = "The river Ash rises in Kirkby. It is 41 km long."
    (one,) = judge.read([Evidence(text, "How long is the Ash?", "41 km", context="Rivers")])
    assert 0 <= one.answers <= 1
    assert 0 <= one.supports + one.contradicts <= 1
    likelihood, start, end = one.best([0, 30, len(text)])
    assert 0 < likelihood <= 1
    assert (start < end <= 30) or 30 <= start < end
    assert one.within(start, end) >= likelihood


def test_texts_of_a_batch_are_read_as_if_alone(judge: Judge) -> None:
    some = [Evidence("It is 41 km long.", "How long is it?"), Evidence("word " * 300, statement="It is short.")]
    together, alone = judge.read(some), [judge.read([one])[0] for one in some]
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(
            [one.answers, one.supports, one.contradicts], [other.answers, other.supports, other.contradicts], atol=1e-4
        )


@pytest.mark.parametrize("words", [60, 96, 130])
def test_long_questions_statements_and_contexts_leave_room_for_the_text(judge: Judge, words: int) -> None:
    long, text = "river " * words, " ".join(f"Sentence {n} of many." for n in range(60))
    (one,) = judge.read([Evidence(text, long, long, long)])
    assert one.parts[-1].spans[-1, 1] == len(text)
    assert len(one.parts) < 15


def test_a_long_text_is_read_in_parts_to_its_end(judge: Judge) -> None:
    text = " ".join(f"Sentence {n} of many." for n in range(400))
    (one,) = judge.read([Evidence(text, "Which sentence?")])
    assert len(one.parts) > 1
    seen = sorted({tuple(span) for part in one.parts for span in part.spans.tolist()})
    assert seen[-1][1] == len(text)
    assert all(after[0] - before[1] <= 1 for before, after in pairwise(seen)), "nothing is left out"


def test_the_statement_and_the_context_take_part(judge: Judge) -> None:
    text = "The canteen is closed on Sundays."
    plain, stated, above = judge.read(
        [
            Evidence(text, "When is it closed?"),
            Evidence(text, "When is it closed?", "On Mondays."),
            Evidence(text, "When is it closed?", context="Handbook"),
        ]
    )
    assert plain.supports != stated.supports
    assert plain.answers != above.answers


def test_weights_of_another_model_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    base = find_model("bundled", "embedder")
    with pytest.raises(UnsupportedError, match="was trained from another model"):
        Judge(write_random_judge(tmp_path, "0" * 64), base).read([Evidence("A text.")])
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(DamagedModelError, match="cannot be read"):
        Judge(tmp_path, base).read([Evidence("A text.")])


def test_long_questions_and_empty_texts_are_read(judge: Judge) -> None:
    long, empty = judge.read([Evidence("It is 41 km.", "why " * 1000), Evidence("", "How long is it?")])
    assert long.parts
    assert (empty.answers, empty.within(0, 10), empty.best((0, 0))) == (pytest.approx(0, abs=1e-6), 0, (0, 0, 0))
    assert judge.read([]) == []


def test_likelihoods_are_how_likely_texts_answer(judge: Judge) -> None:
    texts = ["It is 41 km long.", "Cheese is made of milk."]
    read = [one.answers for one in judge.read([Evidence(text, "How long is it?") for text in texts])]
    assert judge.likelihoods("How long is it?", texts) == pytest.approx(read, abs=1e-3)


def _part(spans: list[tuple[int, int]], first: list[float], last: list[float], nowhere: float = 0.0) -> Part:
    return Part(np.array(spans), np.array(first, np.float32), np.array(last, np.float32), nowhere)


def test_an_answer_counts_only_inside() -> None:
    one = Judgement((_part([(0, 3), (4, 8), (9, 12)], [0.2, 0.5, 0.1], [0.1, 0.6, 0.1], 0.2),), 0.0, 0.0)
    assert one.within(0, 12) == pytest.approx(0.8 * 0.8)
    assert one.within(4, 8) == pytest.approx(0.5 * 0.6)
    assert one.within(5, 8) == 0
    assert one.answers == pytest.approx(0.8)
    assert Judgement((), 0.0, 0.0).within(0, 9) == Judgement((), 0.0, 0.0).answers == 0


def test_the_likeliest_answer_crosses_no_bound() -> None:
    text = "Net sales | 12.5"
    one = Judgement((_part([(0, 3), (4, 9), (12, 16)], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9]),), 0.0, 0.0)
    likelihood, start, end = one.best((0, 10, len(text)))
    assert (text[start:end], likelihood) == ("12.5", pytest.approx(0.09))
    assert one.best((0, len(text))) == (pytest.approx(0.72), 4, 16)


def _linear(*shape: int) -> Linear:
    return Linear(np.ones(shape, np.float32), np.zeros(shape[0], np.float32))


def _bert() -> Bert:
    layer = Layer(_linear(6, 2), _linear(2, 2), _linear(2), _linear(4, 2), _linear(2, 4), _linear(2))
    return Bert(None, None, None, (layer, layer))  # type: ignore[arg-type]


def test_learned_changes_are_added_to_the_weights() -> None:
    bert = _bert()
    thin = {"1.up.left": np.full((4, 1), 2.0, np.float32), "1.up.right": np.full((1, 2), 3.0, np.float32)}
    more = with_learned(
        bert, {**thin, "1.up.bias": np.ones(4, np.float32), "0.out_norm.weight": np.ones(2, np.float32)}
    )
    assert more.layers[1].up.weight.tolist() == [[7.0, 7.0]] * 4
    assert more.layers[1].up.bias.tolist() == [1.0] * 4
    assert more.layers[0].out_norm.weight.tolist() == [2.0, 2.0]
    assert more.layers[0].up.weight.tolist() == bert.layers[0].up.weight.tolist()


def test_a_warm_judge_reads_the_same(tmp_path: Path) -> None:
    cold, warm = random_judge(tmp_path), random_judge(tmp_path)
    warm.warm_up()
    loaded = warm._exact
    warm.warm_up()
    assert warm._exact is loaded, "loaded twice"
    if find_spec("openvino"):
        assert type(warm._exact) is not type(cold._exact)
    some = [Evidence("It is 41 km long.", "How long is it?"), Evidence("Cheese is made of milk.", "How long is it?")]
    for one, other in zip(cold.read(some), warm.read(some), strict=True):
        assert other.answers == pytest.approx(one.answers, abs=1e-4)


def test_a_wide_network_is_read_by_the_fastest_backend_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = random_judge(tmp_path), random_judge(tmp_path)
    monkeypatch.setattr(judge_module, "_NARROW", 0)
    assert wide._exact is wide._load_fast()
    wide.warm_up()
    assert wide._exact is wide._load_fast()
    monkeypatch.undo()
    evidence = [Evidence("It is 41 km long.", "How long is it?")]
    assert wide.read(evidence)[0].answers == pytest.approx(narrow.read(evidence)[0].answers, abs=0.02)


def test_a_judge_warms_up_without_a_working_openvino(broken_openvino: None, tmp_path: Path) -> None:
    warm, cold = random_judge(tmp_path), random_judge(tmp_path)
    warm.warm_up()
    evidence = [Evidence("It is 41 km long.", "How long is it?")]
    assert warm.read(evidence)[0].answers == pytest.approx(cold.read(evidence)[0].answers)


def test_a_folder_with_a_judge_is_loaded_once(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no judge in"):
        find_judge(str(tmp_path))
    write_random_judge(tmp_path)
    assert load_judge(str(tmp_path)) is load_judge(str(tmp_path))


def test_weights_are_added_to_the_installed_model_that_they_belong_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_judge(str(write_random_judge(tmp_path))) == (tmp_path, find_model("bundled", "embedder"))
    write_random_judge(tmp_path, judge_base.FILES[judge_base.WEIGHTS])
    monkeypatch.setattr(judge_base, "find_judge_base", lambda: tmp_path / "base")
    assert find_judge(str(tmp_path)) == (tmp_path, tmp_path / "base")
    write_random_judge(tmp_path, "0" * 64)
    with pytest.raises(UnsupportedError, match=f"'{tmp_path}' belongs to an unknown embedding model.*'000"):
        find_judge(str(tmp_path))
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(DamagedModelError, match="cannot be read"):
        find_judge(str(tmp_path))


@pytest.mark.parametrize(("reader", "judge"), [("bundled", "small"), ("none", "small"), ("models/a.gguf", "base")])
def test_auto_is_the_base_judge_next_to_a_larger_reader(
    reader: str, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_module, "load_judge", lambda name: name)
    assert configured_judge("auto", reader) == judge


def test_auto_is_the_small_judge_where_the_base_one_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, base in (("judge-small", ""), ("judge-base", judge_base.FILES[judge_base.WEIGHTS])):
        (tmp_path / name).mkdir()
        write_random_judge(tmp_path / name, base)
    monkeypatch.setattr(judge_module, "SHIPPED", tmp_path)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(judge_module, "load_judge", lambda name: find_judge(name) and name)
    assert configured_judge("auto", "models/a.gguf") == "small"
    with pytest.raises(ModelNotFoundError, match="Run `ragfm models pull judge-base`"):
        find_judge("base")


def test_auto_is_no_judge_where_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModelNotFoundError("There is none.", "Install it.")

    monkeypatch.setattr(judge_module, "load_judge", missing)
    assert configured_judge("auto", "models/a.gguf") is None
    with pytest.raises(ModelNotFoundError):
        configured_judge("small", "models/a.gguf")
