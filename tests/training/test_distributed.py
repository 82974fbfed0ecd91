"""Several processes learn what one learns, and stop and go on together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import lessons, tiny_model

from ragfm.cli import adapt_train as command
from ragfm.core.types import Message
from ragfm.models.adapters import CHECKPOINT, read_record
from ragfm.training.base_model import Base
from ragfm.training.checkpoint import read_tensors
from ragfm.training.distributed import Processes, join
from ragfm.training.examples import Example, to_lines
from ragfm.training.training_batches import rows_of, share, tokens_of

_LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
           "--main_process_port", "0"]  # fmt: skip
_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import ragfm.training.trainer as train
from ragfm.training.base_model import Base
from ragfm.training.methods import MethodSettings
from ragfm.training.distributed import join, leave
from ragfm.training.adapter_folder import finish
from support.tiny_models import lessons
train.in_bfloat16 = lambda _: False  # which rounds by how rows are padded
model, out, dropout, stop = sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
processes = join()
settings = train.TrainSettings(MethodSettings(rank=4, dropout=dropout), epochs=4, batch=5, rate=5e-3,
                               checkpoint_seconds=1e9)
training = train.Training(Base(model), lessons(), out, settings, valid=lessons(4))

def progress(at):
    if at.step == stop and processes.first:
        os.kill(os.getppid(), signal.SIGINT)  # the launcher, as a Ctrl-C

numbers = training.run(progress)
if processes.first:
    finish(training, numbers, card={})
    told = {"losses": training.state.losses, "valid": training.state.valid, "processes": numbers["processes"]}
    print(json.dumps(told))
leave()
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False,
        cwd=folder, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip


def trained(model: Path, out: Path, *, several: bool, dropout: float = 0.0, stop: int = 0) -> Any:
    script = out.parent / "script.py"
    script.write_text(_SCRIPT)
    words = [str(script), str(Path(__file__).parents[1]), str(model), str(out), str(dropout), str(stop)]
    done = run([*_LAUNCH, *words] if several else words, out.parent)
    if stop:
        assert done.returncode != 0
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same(one: Any, other: Any) -> None:
    for curve in ("losses", "valid"):
        assert [at for at, _ in one[curve]] == [at for at, _ in other[curve]]
        assert [loss for _, loss in other[curve]] == pytest.approx([loss for _, loss in one[curve]], abs=1e-3)


@pytest.mark.slow
def test_two_processes_learn_the_adapter_that_one_learns(folder: Path, tmp_path: Path) -> None:
    one = trained(folder, tmp_path / "one", several=False)
    two = trained(folder, tmp_path / "two", several=True)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["losses"]) == 24
    assert_same(one, two)
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_ctrl_c_stops_both_processes_at_one_step_and_they_go_on_there(folder: Path, tmp_path: Path) -> None:
    whole = trained(folder, tmp_path / "whole", several=True, dropout=0.1)
    trained(folder, tmp_path / "stopped", several=True, dropout=0.1, stop=7)
    assert 7 <= read_tensors(tmp_path / "stopped" / CHECKPOINT)[1]["step"] < 24
    assert_same(whole, trained(folder, tmp_path / "stopped", several=True, dropout=0.1))


@pytest.mark.slow
def test_the_command_speaks_once_however_many_processes_there_are(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train.jsonl").write_bytes(to_lines(lessons()))
    words = ["-m", "ragfm", "adapt", "train", "made", "--base", str(folder), "--rank", "2", "--rate", "0.005", "--json"]
    done = run([*_LAUNCH, *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["adapter"]["numbers"]["processes"] == 2
    assert done.stderr.count("30 examples") == 1
    assert read_record(tmp_path / "ragfm-adapter").numbers["steps"] == 2


@pytest.mark.parametrize(("count", "taking"), [(1, 1), (2, 2), (3, 3), (8, 8), (12, 9)])
def test_each_example_of_a_step_goes_to_one_process(folder: Path, count: int, taking: int) -> None:
    base = Base(str(folder))
    examples = [
        Example((Message("system", "Be short."), Message("user", f"{text}\n\nQuestion {at}{'?' * at}")), f"It is {at}.")
        for text in ("Alpha beta gamma delta. " * 8, "Epsilon zeta eta theta. " * 8) for at in range(4)
    ]  # fmt: skip
    encoded = [base.encode(example) for example in [*examples, *lessons(1)]]
    step = (tuple(rows_of(encoded, 2048)),)
    shares = [share(step, encoded, 600, number, count) for number in range(count)]
    assert sorted(at for one in shares for part in one for row in part for at in row) == list(range(9))
    assert sum(map(bool, shares)) == taking
    for part in (part for one in shares for part in one):
        assert len(part) == 1 or len(part) * max(tokens_of([encoded[at] for at in row]) for row in part) <= 600


def test_a_process_that_no_launcher_started_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = join()
    assert (processes.number, processes.count, processes.first) == (0, 1, True)
    Processes().wait()


@pytest.mark.parametrize(("gpus", "told"), [(0, ""), (1, ""), (4, "accelerate launch --multi_gpu --num_processes 4 ")])
def test_training_says_how_several_gpus_are_used(
    gpus: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    command._print_gpu_hint()
    said = capsys.readouterr().err
    assert told in said
    assert bool(said) == bool(told)
