"""The judge with weights that nothing was trained on: what it reads, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ragfm.answering.judge import BASE, WEIGHTS, Evidence, Judge
from ragfm.core.errors import DamagedModelError, UnsupportedError
from ragfm.models.model_lookup import find_model, weights_sha256


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return Judge(written(tmp_path), find_model("bundled", "embedder"))


def written(folder: Path, base: str = "") -> Path:
    """A folder with random heads, which leave the embedding model as it is."""
    rng, width = np.random.default_rng(0), 384
    shapes = {"span": (2, width), "pool": (width, width), "stance": (3, width), "stated": (1, width), "least": (4, 1)}
    tensors = {f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float16) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[0], np.float16) for name, shape in shapes.items() if name != "least"}
    save_file(tensors, folder / WEIGHTS, {BASE: base or weights_sha256(find_model("bundled", "embedder"))})
    return folder


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


def test_a_long_text_is_read_in_parts_to_its_end(judge: Judge) -> None:
    text = " ".join(f"Sentence {n} of many." for n in range(400))
    (one,) = judge.read([Evidence(text, "Which sentence?")])
    assert len(one.parts) > 1
    ends = [int(part.spans[-1, 1]) for part in one.parts]
    assert ends == sorted(ends)
    assert ends[-1] == len(text)


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
        Judge(written(tmp_path, "0" * 64), base).read([Evidence("A text.")])
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(DamagedModelError, match="cannot be read"):
        Judge(tmp_path, base).read([Evidence("A text.")])
