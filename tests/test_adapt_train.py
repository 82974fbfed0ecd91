"""Training: that it learns, by each method, and that a kill costs nothing."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Shell
from tiny import lessons, tiny_model

from ragfm.adapt.base import Base
from ragfm.adapt.batches import loss_of, order
from ragfm.adapt.checkpoint import CHECKPOINT, read_tensors, write_tensors
from ragfm.adapt.examples import to_lines
from ragfm.adapt.methods import MethodSettings
from ragfm.adapt.result import PAGE, finish
from ragfm.adapt.train import Training, TrainSettings
from ragfm.adapter import METHODS, RECORD, check_adapter, read_record
from ragfm.errors import (
    AdapterMismatchError,
    DamagedModelError,
    DataError,
    ModelNotFoundError,
    RagfmError,
    UnsupportedError,
)
from ragfm.prompt import prompt_fingerprint

RATES = {"lora": 2e-2, "dora": 2e-2, "prefix": 2e-1, "prompt": 1e-1, "ia3": 1e-1, "full": 5e-3}
SETTINGS = TrainSettings(MethodSettings(rank=4), epochs=2, batch=5, rate=5e-3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On tiny matrices threads only wait for each other, and very long where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def training(folder: Path, out: Path, settings: TrainSettings = SETTINGS, **given: Any) -> Training:
    examples = given.pop("examples", lessons())
    return Training(Base(str(folder)), examples, out, settings, **given)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "qlora"])
def test_the_loss_falls_by_each_method(folder: Path, tmp_path: Path, method: Any) -> None:
    settings = TrainSettings(MethodSettings(method, rank=4, tokens=4), epochs=8, batch=10, rate=RATES[method])
    trained = training(folder, tmp_path / "out", settings)
    numbers = trained.run()
    assert numbers["loss"]["last_5"] < numbers["loss"]["first"] * (
        0.97 if method in ("ia3", "prompt", "prefix") else 0.8
    )
    assert 0 < numbers["learned"] <= numbers["parameters"]
    record = finish(trained, numbers, card={"prompt": prompt_fingerprint()}, licence="CC0")
    assert read_record(tmp_path / "out") == record
    check_adapter(tmp_path / "out", folder, prompt_fingerprint())
    assert not (tmp_path / "out" / CHECKPOINT).exists()
    assert "<polyline" in (tmp_path / "out" / PAGE).read_text()


def test_qlora_says_what_it_needs(folder: Path) -> None:
    from ragfm.models import find_model

    with pytest.raises(UnsupportedError, match="GGUF file, quantised in its own way"):
        Base(str(find_model("bundled", "reader")), four_bit=True)


def test_only_completions_are_learned_from_however_they_are_padded(folder: Path) -> None:
    base = Base(str(folder))
    encoded = [base.encode(example) for example in lessons(8)]
    summed, count = loss_of(base.model, encoded, base.pad, base.device)
    expected = 0.0
    for one in encoded:  # each alone, by transformers' own loss
        labels = torch.tensor([[-100] * one.start + list(one.ids[one.start :])])
        expected += float(base.model(torch.tensor([one.ids]), labels=labels).loss) * (len(one.ids) - one.start)
    assert count == sum(len(one.ids) - one.start for one in encoded)
    assert float(summed) == pytest.approx(expected, rel=1e-4)
    text = base.tokenizer.decode(encoded[1].ids[encoded[1].start :])
    assert text == "It is 1 [1].<|im_end|>"


def test_each_example_comes_once_an_epoch_among_those_of_its_length() -> None:
    lengths = [random.Random(at).randint(10, 400) for at in range(500)]
    steps = order(lengths, 2, 8, 2048, seed=1)
    seen = [at for step in steps for part in step for at in part]
    assert sorted(seen) == sorted([*range(500)] * 2)
    padded = sum(len(part) * max(lengths[at] for at in part) for step in steps for part in step)
    assert padded < 1.1 * 2 * sum(lengths)
    assert all(len(part) * max(lengths[at] for at in part) <= 2048 for step in steps for part in step)
    assert order(lengths, 2, 8, 2048, seed=1) == steps
    assert order(lengths, 2, 8, 2048, seed=2) != steps
    assert sum(len(part) for step in order(lengths, 0.5, 8, 2048, 0) for part in step) == 250


def test_it_ends_where_validation_gets_no_better_and_keeps_the_best(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=20, rate=0.05, validate_every=1, patience=2)
    trained = training(folder, tmp_path / "out", settings, valid=lessons(4))
    numbers = trained.run()
    assert numbers["steps"] < numbers["of_steps"]
    best = min(trained.state.valid, key=lambda point: point[1])
    assert numbers["kept_step"] == best[0]
    trained.model.eval()
    with torch.no_grad(), trained._autocast():
        assert trained._valid_loss() == pytest.approx(best[1], abs=1e-3)


def test_answers_are_what_is_judged_if_asked_for(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, judge="answers", validate_every=12)
    numbers = training(folder, tmp_path / "out", settings, valid=lessons(2)).run()
    assert all(0 <= score <= 1 for score in numbers["valid"].values())


_SCRIPT = """
import json, os, random, signal, sys, time
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from pathlib import Path
from tiny import lessons
from ragfm.adapt.base import Base
from ragfm.adapt.checkpoint import CHECKPOINT, read_tensors
from ragfm.adapt.methods import MethodSettings
from ragfm.adapt.train import Training, TrainSettings
model, out = sys.argv[1], Path(sys.argv[2])
settings = TrainSettings(MethodSettings(rank=4, dropout=0.1), epochs=8, batch=5, rate=5e-3, checkpoint_seconds=0,
                         validate_every=4, patience=99)

def train(folder, progress=None):
    training = Training(Base(model), lessons(), folder, settings, valid=lessons(3))
    training.run(progress)
    return [[loss for _, loss in training.state.losses], [value for _, value in training.state.valid]]

chance, before = random.Random(5), 0
for kill in range(5):
    steps, told = os.pipe()
    child = os.fork()
    if not child:
        train(out / "killed", lambda at: os.write(told, bytes([at.step])))
        os._exit(0)
    first = os.read(steps, 1)[0]
    assert first > before, (first, before)
    until = first + chance.randint(1, 4)
    while os.read(steps, 1)[0] < until:
        pass
    time.sleep(chance.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    tensors, about = read_tensors(out / "killed" / CHECKPOINT)
    assert until - 1 <= about["step"] < 48, (until, about["step"])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    before = about["step"]
print(json.dumps([train(out / "whole"), train(out / "killed"), before]))
"""


@pytest.mark.slow
def test_a_training_that_was_killed_five_times_loses_what_one_that_was_not_loses(folder: Path, tmp_path: Path) -> None:
    """Each run is a fork of a process that has loaded the libraries, killed by a signal that none can catch."""
    words = [sys.executable, "-c", _SCRIPT, str(folder), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    whole, killed, last = json.loads(done.stdout.splitlines()[-1])
    assert len(whole[0]) == 48
    assert 5 <= last < 48
    for one, other in zip(whole, killed, strict=True):
        assert other == pytest.approx(one, abs=1e-3)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    write_tensors(path, {"a": torch.ones(10)}, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_tensors(path, {"a": torch.zeros(10_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)
    assert read_tensors(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_disk_that_is_too_small_is_said_before_it_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(RagfmError, match="0 MB left, and training needs"):
        training(folder, tmp_path / "out").run()


def test_a_checkpoint_of_another_training_is_refused(folder: Path, tmp_path: Path) -> None:
    training(folder, tmp_path / "out").run()
    with pytest.raises(DataError, match="epochs 2 there, 3 now"):
        training(folder, tmp_path / "out", replace(SETTINGS, epochs=3)).run()


def test_another_base_prompt_or_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    trained = training(folder, tmp_path / "out", replace(SETTINGS, epochs=0.2))
    finish(trained, trained.run(), card={"prompt": "another"})
    other = tiny_model(tmp_path / "other", hidden_size=32)
    with pytest.raises(AdapterMismatchError, match="on other weights"):
        check_adapter(tmp_path / "out", other)
    with pytest.raises(AdapterMismatchError, match="for another prompt"):
        check_adapter(tmp_path / "out", folder, prompt_fingerprint())
    check_adapter(tmp_path / "out", folder)
    with pytest.raises(DataError, match="holds an adapter already"):
        training(folder, tmp_path / "out").run()
    weights = tmp_path / "out" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedModelError, match="not what was trained"):
        check_adapter(tmp_path / "out", folder)
    (tmp_path / "out" / RECORD).unlink()
    with pytest.raises(ModelNotFoundError, match="has not ended"):
        check_adapter(tmp_path / "out", folder)


def test_no_example_and_one_example(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no example"):
        training(folder, tmp_path / "out", examples=[])
    with pytest.raises(DataError, match="of at most 9 tokens"):
        training(folder, tmp_path / "out", replace(SETTINGS, most_tokens=9))
    assert training(folder, tmp_path / "one", examples=lessons(1)).run()["steps"] == 2


@pytest.mark.slow
def test_the_command_says_what_it_takes_and_trains(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train.jsonl").write_bytes(to_lines(lessons()))
    (tmp_path / "made" / "card.json").write_text(json.dumps({"prompt": "p", "sources": []}))
    words = ["made", "--base", str(folder), "--rank", "2", "--price-per-hour", "3600", "--rate", "0.005", "--json"]
    shell = Shell(tmp_path)
    done = shell("adapt", "train", *words)
    said = json.loads(done.stdout)
    assert said["plan"]["cost"] == pytest.approx(said["plan"]["seconds"], rel=0.01)
    assert said["plan"]["peak_mb"] > 100
    assert "30 examples" in done.stderr
    record = read_record(tmp_path / "ragfm-adapter")
    assert (record.method, record.prompt, record.numbers["steps"]) == ("lora", "p", 2)
    assert "holds an adapter already" in shell("adapt", "train", *words, code=1).stdout
    assert "no file of examples" in shell("adapt", "train", "nowhere", code=1).stderr
