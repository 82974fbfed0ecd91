"""Data-parallel training: several processes train what one trains, and stop and resume together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.tiny_models import tiny_examples, tiny_model

from ragfm.core.types import Message
from ragfm.models.adapters import CHECKPOINT, read_record
from ragfm.training.base_model import Base
from ragfm.training.checkpoint import read_tensors
from ragfm.training.distributed import Processes, is_main_process, join_processes, unused_gpus
from ragfm.training.examples import Example, examples_to_jsonl
from ragfm.training.training_batches import pack_rows, row_tokens, shard_step

_LAUNCH = ("-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0").split()
_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import ragfm.training.trainer as train
from ragfm.training.base_model import Base
from ragfm.training.adapter_folder import write_adapter
from ragfm.training.distributed import join_processes, leave_processes
from ragfm.training.train_settings import MethodSettings, TrainSettings
from support.tiny_models import tiny_examples
train.in_bfloat16 = lambda _: False  # which rounds by how rows are padded
model, out, dropout, stop = sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
processes = join_processes()
settings = TrainSettings(MethodSettings(rank=4, dropout=dropout), epochs=4, batch=5, rate=5e-3,
                         checkpoint_seconds=1e9)
training = train.Training(Base(model), tiny_examples(), out, settings, valid=tiny_examples(4))

def progress(now):
    if now.done == stop and processes.is_main:
        os.kill(os.getppid(), signal.SIGINT)  # the launcher, as a Ctrl-C

figures = training.run(progress)
if processes.is_main:
    write_adapter(training, figures, card={})
    curves = {"losses": training.state.losses, "valid": training.state.valid, "processes": figures["processes"]}
    print(json.dumps(curves))
leave_processes()
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
    )


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
def test_two_processes_train_the_same_adapter_as_one(folder: Path, tmp_path: Path) -> None:
    one = trained(folder, tmp_path / "one", several=False)
    two = trained(folder, tmp_path / "two", several=True)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["losses"]) == 24
    assert_same(one, two)
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_ctrl_c_stops_both_processes_at_the_same_step_and_they_resume(folder: Path, tmp_path: Path) -> None:
    whole = trained(folder, tmp_path / "whole", several=True, dropout=0.1)
    trained(folder, tmp_path / "stopped", several=True, dropout=0.1, stop=7)
    assert 7 <= read_tensors(tmp_path / "stopped" / CHECKPOINT)[1]["step"] < 24
    assert_same(whole, trained(folder, tmp_path / "stopped", several=True, dropout=0.1))


@pytest.mark.slow
def test_only_the_main_process_of_the_command_prints(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train.jsonl").write_bytes(examples_to_jsonl(tiny_examples()))
    words = ["-m", "ragfm", "adapt", "train", "made", "--base", str(folder), "--rank", "2", "--rate", "0.005", "--json"]
    done = run([*_LAUNCH, *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["adapter"]["numbers"]["processes"] == 2
    assert done.stderr.count("30 examples") == 1
    assert read_record(tmp_path / "ragfm-adapter").numbers["steps"] == 2


_TRAIN_SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ragfm.core.progress import Progress
from ragfm.training import MethodSettings, TrainSettings, estimate_training, train
from support.tiny_models import tiny_examples
settings = TrainSettings(MethodSettings(rank=2), batch=16)
figures = []
estimate = estimate_training(tiny_examples(), sys.argv[2], "none", settings=settings)
for name in ("first", "second"):
    steps = []
    result = train(tiny_examples(), sys.argv[2], name, settings=settings, progress=steps.append)
    figures.append([result.record.numbers["processes"], len(steps), result.main_process])
open(f"rank-{result.main_process}.json", "w").write(json.dumps([estimate.steps, figures]))
"""


@pytest.mark.slow
def test_train_returns_the_record_in_each_process_and_can_be_called_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_TRAIN_SCRIPT)
    done = run([*_LAUNCH, str(tmp_path / "script.py"), str(Path(__file__).parents[1]), str(folder)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "rank-True.json").read_text()) == [2, [[2, 2, True], [2, 2, True]]]
    assert json.loads((tmp_path / "rank-False.json").read_text()) == [2, [[2, 0, False], [2, 0, False]]]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("count", "taking"), [(1, 1), (2, 2), (3, 3), (8, 8), (12, 9)])
def test_each_example_of_a_step_goes_to_one_process(folder: Path, count: int, taking: int) -> None:
    base = Base(str(folder))
    examples = [
        Example((Message("system", "Be short."), Message("user", f"{text}\n\nQuestion {at}{'?' * at}")), f"It is {at}.")
        for text in ("Alpha beta gamma delta. " * 8, "Epsilon zeta eta theta. " * 8)
        for at in range(4)
    ]
    encoded = [base.encode(example) for example in [*examples, *tiny_examples(1)]]
    step = (tuple(pack_rows(encoded, 2048)),)
    shares = [shard_step(step, encoded, 600, number, count) for number in range(count)]
    assert sorted(at for one in shares for part in one for row in part for at in row) == list(range(9))
    assert sum(map(bool, shares)) == taking
    for part in (part for one in shares for part in one):
        assert len(part) == 1 or len(part) * max(row_tokens([encoded[at] for at in row]) for row in part) <= 600


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = join_processes()
    assert (processes.rank, processes.world_size, processes.is_main) == (0, 1, True)
    Processes().barrier()


@pytest.mark.parametrize(("gpus", "hint"), [(0, ""), (1, ""), (4, "accelerate launch --multi_gpu --num_processes 4 ")])
def test_training_says_how_to_use_several_gpus(gpus: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ragfm.cli.adapt_train import train

    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    output = CliRunner().invoke(train, ["missing"], standalone_mode=False).stderr
    assert hint in output
    assert bool(output) == bool(hint)


def test_all_gpus_are_used_if_a_launcher_started_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert unused_gpus() == 4
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert unused_gpus() == 0


@pytest.mark.parametrize(("rank", "is_main"), [(None, True), ("0", True), ("1", False)])
def test_the_main_process_is_the_one_with_rank_zero(
    rank: str | None, is_main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert is_main_process() == is_main
