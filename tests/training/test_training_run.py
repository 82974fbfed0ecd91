"""The library functions that train an adapter in one call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_models import tiny_examples, tiny_model

from ragfm.core.abstention import ABSTENTION
from ragfm.core.errors import AdapterMismatchError, DataError, ModelNotFoundError
from ragfm.core.progress import Progress
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import CHECKPOINT, RECORD, check_adapter, read_record
from ragfm.models.model_lookup import find_model
from ragfm.training import (
    Dataset,
    TrainingEstimate,
    TrainSettings,
    estimate_training,
    train,
    write_dataset,
)
from ragfm.training.adapter_card import base_facts
from ragfm.training.checkpoint import BEST, read_tensors
from ragfm.training.examples import examples_to_jsonl

SETTINGS = TrainSettings(rank=2, epochs=2, batch=5, rate=5e-3)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    card = {"prompt": prompt_fingerprint(), "sources": [{"licence": "CC0"}]}
    write_dataset(Dataset(tuple(tiny_examples(20)), tuple(tiny_examples(4)), card), tmp_path / "examples")
    return tmp_path / "examples"


def test_train_writes_an_adapter_with_its_record(base: str, examples: Path, tmp_path: Path) -> None:
    steps: list[Progress] = []
    estimates: list[TrainingEstimate] = []
    record = train(
        examples,
        base,
        tmp_path / "out",
        settings=SETTINGS,
        licence="CC0",
        on_estimate=estimates.append,
        progress=steps.append,
    )
    out = tmp_path / "out"
    assert len(estimates) == 1
    assert record.weights == read_record(out).weights
    assert (record.licence, record.prompt) == ("CC0", prompt_fingerprint())
    assert record.data["sources"] == [{"licence": "CC0"}]
    figures = record.numbers
    assert (figures["examples"], figures["valid_examples"], figures["steps"]) == (20, 4, 8)
    check_adapter(out, base, prompt_fingerprint())
    assert RECORD in {path.name for path in out.iterdir()}
    assert not {CHECKPOINT, BEST} & {path.name for path in out.iterdir()}
    assert [(step.stage, step.done, step.total) for step in steps] == [("train", step, 8) for step in range(1, 9)]
    assert set(steps[-1].figures) == {"loss", "validation_loss", "tokens_per_second", "seconds_left"}
    assert steps[-1].figures["seconds_left"] == 0
    with pytest.raises(DataError, match="already contains an adapter"):
        train(examples, base, out, settings=SETTINGS)


def test_train_takes_files_and_examples(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(examples_to_jsonl(tiny_examples(10)))
    settings = replace(SETTINGS, epochs=1)
    by_file = train(tmp_path / "mine.jsonl", base, tmp_path / "a", settings=settings)
    by_list = train(tiny_examples(10), base, tmp_path / "b", settings=settings, valid=tiny_examples(2))
    assert by_file.settings["examples"] == by_list.settings["examples"]
    assert (by_file.numbers["valid_examples"], by_list.numbers["valid_examples"]) == (0, 2)


def test_the_estimate_writes_nothing_and_equals_that_of_training(base: str, examples: Path, tmp_path: Path) -> None:
    estimate = estimate_training(examples, base, tmp_path / "out", settings=SETTINGS)
    assert (estimate.examples, estimate.valid_examples, estimate.too_long, estimate.steps) == (20, 4, 0, 8)
    assert 0 < estimate.learned < estimate.parameters
    assert min(estimate.tokens, estimate.seconds, estimate.peak_mb, estimate.disk_mb, estimate.tokens_per_second) > 0
    assert not (tmp_path / "out").exists()
    estimates: list[TrainingEstimate] = []
    train(examples, base, tmp_path / "out", settings=SETTINGS, on_estimate=estimates.append)
    assert [(one.tokens, one.disk_mb) for one in estimates] == [(estimate.tokens, estimate.disk_mb)]


def test_an_interrupted_run_continues_from_the_checkpoint_in_its_folder(
    base: str, examples: Path, tmp_path: Path
) -> None:
    def interrupt(now: Progress) -> None:
        if now.done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(examples, base, out, settings=SETTINGS, progress=interrupt)
    assert read_tensors(out / CHECKPOINT)[1]["step"] == 3
    with pytest.raises(DataError, match="belongs to a different training run: epochs 2 there, 1 now"):
        train(examples, base, out, settings=replace(SETTINGS, epochs=1))
    steps: list[Progress] = []
    record = train(examples, base, out, settings=SETTINGS, progress=steps.append)
    assert [step.done for step in steps] == [4, 5, 6, 7, 8]
    whole = train(examples, base, tmp_path / "whole", settings=SETTINGS)
    assert record.numbers["loss"] == pytest.approx(whole.numbers["loss"], abs=1e-3)


def test_bad_input_is_refused_before_a_model_is_loaded(base: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match=r"no example in .*empty\.jsonl"):
        train(empty, "no-such-model")
    with pytest.raises(DataError, match=r"file of examples .* does not exist"):
        estimate_training(tmp_path / "nowhere", "no-such-model")
    with pytest.raises(ModelNotFoundError):
        train(tiny_examples(), "no-such-model", tmp_path / "out")
    with pytest.raises(DataError, match="is the base itself"):
        train(tiny_examples(), base, base)
    assert not (tmp_path / "out").exists()


def test_examples_without_an_answer_are_refused(base: str, tmp_path: Path) -> None:
    silent = [replace(example, completion=ABSTENTION) for example in tiny_examples(9)]
    with pytest.raises(DataError, match="all 9 completions are abstentions"):
        train(silent, base, tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_card_names_the_base_and_its_licence(examples: Path, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "own-model")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    record = train(examples, str(base), tmp_path / "out", settings=replace(SETTINGS, epochs=1), licence="CC0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- Base: `{base}` (sha256 `{record.base['sha256']}`, licence: mit)" in card
    assert "- Licence: CC0" in card
    assert base_facts("bundled", find_model("bundled", "reader"), "reader")["model"] == "SmolLM2-135M-Instruct"


def test_the_shipped_adapter_continues_only_on_its_base(base: str, examples: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterMismatchError, match=r"smollm2-135m-squad.* was trained on different weights"):
        train(examples, base, tmp_path / "out", settings=replace(SETTINGS, start="bundled"))


def test_the_package_loads_no_torch_and_limits_spinning_before_torch_is_loaded() -> None:
    code = (
        "import json, os, sys, ragfm.training\n"
        "print(json.dumps(['torch' in sys.modules, os.environ['GOMP_SPINCOUNT']]))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == [False, "300"]
