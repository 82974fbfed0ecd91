"""Preference tuning: ratings are learned, and an interrupted run loses nothing."""

from __future__ import annotations

import math
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.shell import Shell
from support.tiny_models import tiny_model

from ragfm.cli.adapt_train import _low_rank_method
from ragfm.core.errors import DataError
from ragfm.core.progress import Progress
from ragfm.core.types import Message, Sampling
from ragfm.evaluation.answer_matching import token_f1
from ragfm.generation.readers import load_reader
from ragfm.models.adapters import RECORD, AdapterRecord, read_record
from ragfm.training import Example, MethodSettings, TrainSettings, read_examples, train
from ragfm.training.adapter_export import load_adapter
from ragfm.training.base_model import Base, in_bfloat16
from ragfm.training.examples import examples_to_jsonl
from ragfm.training.preference import encode_sequences, kto_losses
from ragfm.training.trainer import Training
from ragfm.training.training_batches import completion_logprobs

SETTINGS = TrainSettings(
    MethodSettings(rank=4, dropout=0.1), objective="kto", epochs=4, batch=4, rate=2e-2, checkpoint_seconds=1e9
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def rated(count: int, *, start: int = 0) -> list[Example]:
    """Short answers with a unit are better than long ones."""
    return [
        Example(
            (Message("system", "Answer."), Message("user", f"[1] It is {number} m.\n\nHow long is {number}?")),
            f"{number} m [1].",
            {"kind": "answer"},
            f"The text says that it is about {number}.",
        )
        for number in range(start, start + count)
    ]


def training(folder: Path, out: Path, **changes: Any) -> Training:
    settings = replace(SETTINGS, **changes)
    return Training(Base(str(folder)), rated(16), out, settings, valid=rated(6, start=20))


def margin(model: Any, base: Base, examples: list[Example]) -> float:
    """By how much the better answers are more likely than the worse ones, mean in nats."""
    rows = [[sequence] for sequence in encode_sequences(base, examples, "kto", 512).encoded]
    with torch.no_grad(), torch.autocast(base.device.type, torch.bfloat16, enabled=in_bfloat16(base.device)):
        logprobs, _ = completion_logprobs(model.eval(), rows, base.pad, base.device)
    return float((logprobs[0::2] - logprobs[1::2]).mean())


def test_one_validation_example_is_enough_for_kto(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    Training(Base(str(folder)), rated(2), tmp_path / "out", settings, valid=rated(1, start=20)).run()
    with pytest.raises(DataError, match="to the same question"):
        Training(Base(str(folder)), rated(1), tmp_path / "other", settings)


@pytest.mark.parametrize(("method", "goes_on"), [("qlora", "qlora"), ("prefix", "lora"), (None, "lora")])
def test_preferences_continue_an_adapter_with_its_method(tmp_path: Path, method: Any, goes_on: str) -> None:
    if method:
        record = AdapterRecord(method, {"name": "tiny", "sha256": "0"}, "prompt", "0")
        (tmp_path / RECORD).write_bytes(record.to_json())
    assert _low_rank_method(str(tmp_path)) == goes_on


def test_the_loss_is_that_of_the_paper() -> None:
    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    losses = kto_losses(torch.tensor([0.5, 0.2]), torch.tensor([True, False]), 0.1, 2.0, (1.5, 1.0))
    assert losses.tolist() == pytest.approx([1.5 * (1 - sigmoid(2 * 0.4)), 1 - sigmoid(2 * -0.1)])


def base_logprobs(folder: Path, trained: Training) -> list[float]:
    """The log-probabilities of the training answers by the model without an adapter."""
    rows = [[one] for one in trained._train.encoded]
    with torch.no_grad(), trained.loop.autocast():
        return completion_logprobs(Base(str(folder)).model, rows, trained.base.pad, trained.base.device)[0].tolist()


def test_a_preference_is_learned_for_other_questions(folder: Path, tmp_path: Path) -> None:
    trained, held_out = training(folder, tmp_path / "out", epochs=8), rated(6, start=40)
    before = margin(trained.model, trained.base, held_out)
    figures = trained.run()
    assert margin(trained.model, trained.base, held_out) > before + 3
    first = 0.5  # the model is its own reference before the first step
    assert figures["loss"]["first"] == pytest.approx(first, abs=0.02)
    assert figures["loss"]["last_5"] < 0.8 * first
    assert min(figures["valid"].values()) < 0.9 * first
    assert figures["examples"] == 32
    assert trained._train.reference == pytest.approx(base_logprobs(folder, trained), rel=0.02)
    assert len(trained._train.mismatched_reference) == 32


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
def test_a_run_stopped_by_ctrl_c_has_the_losses_of_an_uninterrupted_one(
    folder: Path, tmp_path: Path, method: Any
) -> None:
    """The reference is that of the model before training, also for a run that is resumed."""
    rate = {"lora": 2e-2, "prefix": 1e-1, "full": 1e-3}[method]
    changes = {"method": MethodSettings(method, rank=4, dropout=0.1, tokens=4), "rate": rate, "validate_every": 3}
    whole = training(folder, tmp_path / "whole", **changes)
    whole.run()
    for stop in (2, 7):

        def progress(now: Progress, stop: int = stop) -> None:
            if now.done == stop:
                signal.raise_signal(signal.SIGINT)

        stopped = training(folder, tmp_path / "stopped", **changes)
        with pytest.raises(KeyboardInterrupt):
            stopped.run(progress)
        assert stopped.state.step == stop
    last = training(folder, tmp_path / "stopped", **changes)
    last.run()
    for one, other in ((whole.state.losses, last.state.losses), (whole.state.valid, last.state.valid)):
        assert [at for at, _ in one] == [at for at, _ in other]
        assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], abs=1e-3)


def test_training_continues_from_the_adapter_that_is_the_reference(folder: Path, tmp_path: Path) -> None:
    train(rated(8), str(folder), tmp_path / "first", settings=replace(SETTINGS, objective="likelihood", rate=5e-2))
    start = replace(SETTINGS, start=str(tmp_path / "first"), epochs=0.5)
    onward, again = (Training(Base(str(folder)), rated(8), tmp_path / "out", start) for _ in range(2))
    onward.run()
    again.run()  # from the checkpoint of the last step
    assert again.state.losses == [[step, loss] for step, loss in onward.state.losses]
    assert again._train.reference == pytest.approx(onward._train.reference, abs=1e-3)
    assert base_logprobs(folder, onward) != pytest.approx(onward._train.reference, abs=1.0)


def test_each_objective_takes_the_examples_that_it_can_use(folder: Path, tmp_path: Path) -> None:
    base = Base(str(folder))
    pair, other = rated(2)
    good, bad = replace(other, rejected=None), replace(pair, completion="")
    examples = [pair, good, bad]
    sequences = encode_sequences(base, examples, "kto", 512)
    assert sequences.good == [True, False, True, False]
    assert sequences.good_and_bad_weights == (1.0, 1.0)
    assert encode_sequences(base, [pair, good], "kto", 512).good_and_bad_weights == (1.0, 2.0)
    for prompt, mismatched in zip(sequences.encoded, sequences.mismatched, strict=True):
        assert mismatched.ids[: mismatched.start] == prompt.ids[: prompt.start]
        assert mismatched.ids != prompt.ids
    assert [len(encode_sequences(base, [pair, good], "likelihood", 512).encoded)] == [2]
    with pytest.raises(DataError, match="a bad answer and no good one"):
        encode_sequences(base, examples, "likelihood", 512)
    with pytest.raises(DataError, match="to the same question"):
        encode_sequences(base, [pair], "kto", 512)
    (tmp_path / "train.jsonl").write_bytes(examples_to_jsonl(examples))
    assert read_examples(tmp_path / "train.jsonl") == examples


def measured(number: int, noise: int) -> Example:
    prompt = (Message("user", f"It is {number} m. {'ab' * noise}"),)
    return Example(prompt, f"{number} m", {"answer": f"{number} m"}, f"The text says that it is {number} m")


CASES = [(number, noise) for number in range(10) for noise in range(8)]
RATED = random.Random(0).choices([case for case in CASES if sum(case) % 4], k=200)
HELD_OUT = [measured(*case) for case in CASES if sum(case) % 4 == 0]


@pytest.fixture(scope="module")
def talkative(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned long answers, and some short ones."""
    out = tmp_path_factory.mktemp("talkative") / "model"
    pairs = [measured(*case) for case in RATED]
    long = [replace(pair, completion=str(pair.rejected), rejected=None) for pair in pairs]
    short = [replace(pair, rejected=None) for pair in pairs[:60]]
    settings = TrainSettings(MethodSettings("full"), epochs=25, rate=3e-3)
    train([*short, *long], str(folder), out, settings=settings)
    return out


def serve(model: Path, adapter: Path | None = None) -> tuple[float, float]:
    """Mean number of words, and token F1, of the answers that the reader serves to held-out questions."""
    reader = load_reader(f"transformers:{model}", device="cpu", dtype="float32")
    sampling = Sampling(max_tokens=40, adapter=str(adapter) if adapter else None)
    answers = ["".join(reader.stream(example.messages, sampling)) for example in HELD_OUT]
    f1 = [token_f1(answer, example.meta["answer"]) for answer, example in zip(answers, HELD_OUT, strict=True)]
    return sum(len(answer.split()) for answer in answers) / len(answers), sum(f1) / len(f1)


@pytest.mark.slow
def test_200_ratings_make_served_answers_short_and_no_worse(talkative: Path, tmp_path: Path) -> None:
    """The user prefers the number with its unit to a sentence with it."""
    words, f1 = serve(talkative)
    assert words > 6
    settings = TrainSettings(MethodSettings(rank=8), objective="kto", epochs=2, rate=1e-3)
    pairs = [measured(*case) for case in RATED]
    train(pairs, str(talkative), tmp_path / "out", settings=settings)
    words_after, f1_after = serve(talkative, tmp_path / "out")
    assert words_after < 0.6 * words
    assert f1_after >= f1

    base = Base(str(talkative))
    before = margin(base.model, base, HELD_OUT)
    assert margin(load_adapter(base, tmp_path / "out"), base, HELD_OUT) > before + 1


@pytest.mark.slow
def test_the_command_trains_on_preferences(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train.jsonl").write_bytes(examples_to_jsonl(rated(8)))
    shell = Shell(tmp_path)
    shell("adapt", "train", "made", "--base", str(folder), "--method", "kto", "--rank", "2", "--out", "mine")
    record = read_record(tmp_path / "mine")
    assert (record.method, record.settings["objective"]) == ("lora", "kto")
    assert "Trained by lora and kto for the prompt of ragfm" in (tmp_path / "mine" / "README.md").read_text()
