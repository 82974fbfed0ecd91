"""Training: each method learns, and interrupted runs lose nothing."""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.greedy import generate_greedy
from support.shell import Shell
from support.tiny_models import TEMPLATE, tiny_examples, tiny_model
from transformers import PreTrainedTokenizerFast

from ragfm.core.errors import (
    AdapterMismatchError,
    ConfigError,
    DamagedModelError,
    DataError,
    ModelNotFoundError,
    RagfmError,
    UnsupportedError,
)
from ragfm.core.output_folder import OUTPUT
from ragfm.core.progress import Progress
from ragfm.core.types import Message, Sampling
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.generation.readers import load_reader
from ragfm.generation.readers.torch_model import TorchModel
from ragfm.models.adapters import (
    BEST,
    CHECKPOINT,
    MERGES,
    METHODS,
    NOT_IN_GGUF,
    RECORD,
    Method,
    check_adapter,
    read_record,
    serving_adapter,
)
from ragfm.training.adapter_export import load_adapter
from ragfm.training.adapter_folder import write_adapter
from ragfm.training.base_model import Base
from ragfm.training.checkpoint import read_tensors, trainable_parameters, weight_tensors, write_tensors
from ragfm.training.examples import Example, examples_to_jsonl
from ragfm.training.methods import apply_method
from ragfm.training.train_settings import TrainSettings
from ragfm.training.trainer import Training, shares_prefixes
from ragfm.training.training_batches import completion_loss, pack_rows, plan_steps, row_tokens
from ragfm.training.training_loop import interrupts_between_steps

RATES = {"lora": 2e-2, "qlora": 2e-2, "prefix": 2e-1, "prompt": 1e-1, "ia3": 1e-1, "full": 5e-3}
SETTINGS = TrainSettings(rank=4, epochs=2, batch=5, rate=5e-3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes are multiples of 64, which bitsandbytes needs on a CPU."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", intermediate_size=128)


def training(folder: Path, out: Path, settings: TrainSettings = SETTINGS, **given: Any) -> Training:
    examples = given.pop("examples", tiny_examples())
    if four_bit := settings.method == "qlora":
        pytest.importorskip("bitsandbytes")
    return Training(Base(str(folder), four_bit=four_bit), examples, out, settings, **given)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE,  # Gemma 2
        TEMPLATE.replace(" in messages %}", " in messages if message.role != 'system' %}"),
        TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}",  # DeepSeek R1
    ],
)
def test_prompts_are_those_of_the_reader(tmp_path: Path, template: str) -> None:
    folder, messages = tiny_model(tmp_path / "model"), tiny_examples(1)[0].messages
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    rendered = Base(str(folder)).render(messages)
    assert rendered == TorchModel(folder).render(messages)
    assert "Answer." in rendered


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_and_is_served_as_peft_loads_it(folder: Path, tmp_path: Path, method: Any) -> None:
    settings = TrainSettings(method, rank=4, tokens=4, epochs=8, batch=10, rate=RATES[method])
    trained, out = training(folder, tmp_path / "out", settings), tmp_path / "out"
    numbers = trained.run()
    assert numbers["loss"]["last_5"] < numbers["loss"]["first"] * (
        0.97 if method in ("ia3", "prompt", "prefix") else 0.8
    )
    assert 0 < numbers["learned"] <= numbers["parameters"]
    record = write_adapter(trained, numbers, card={"prompt": prompt_fingerprint()}, licence="CC0")
    assert read_record(out) == record
    check_adapter(out, folder, prompt_fingerprint())
    assert not (out / CHECKPOINT).exists()
    if method == "full":
        with pytest.raises(AdapterMismatchError, match=r"whole model.*reader transformers:"):
            serving_adapter(out, f"transformers:{folder}", prompt_fingerprint())
        return
    if method in NOT_IN_GGUF:
        with pytest.raises(AdapterMismatchError, match=rf"trained with {method}, which llama.cpp cannot") as refused:
            serving_adapter(out, "bundled", prompt_fingerprint())
        assert ("--to merged" in (refused.value.hint or "")) == (method in MERGES)

    base, prompts = Base(str(folder)), [example.messages for example in tiny_examples(3)]
    model = load_adapter(base, out)
    # A stream does not yield a character that is not complete.
    expected = [generate_greedy(model, base, messages, 12).rstrip(" \ufffd") for messages in prompts]
    found = serving_adapter(out, f"transformers:{folder}", prompt_fingerprint())
    assert found
    reader = load_reader(f"transformers:{folder}", dtype="float32", device="cpu")
    adapted = [reader.stream(messages, Sampling(max_tokens=12, adapter=found)) for messages in prompts]
    plain = reader.stream(prompts[0], Sampling(max_tokens=12))
    assert ["".join(stream).strip().rstrip(" \ufffd") for stream in adapted] == expected
    assert "".join(plain).strip() != expected[0]


def test_qlora_refuses_gguf_files(folder: Path) -> None:
    from ragfm.models.model_lookup import find_model

    with pytest.raises(UnsupportedError, match="GGUF file, quantised in its own way"):
        Base(str(find_model("bundled", "reader")), four_bit=True)


@pytest.mark.parametrize("method", ["full", "prefix", "prompt"])
def test_the_loss_is_that_of_the_completions_regardless_of_padding(folder: Path, method: Method) -> None:
    base = Base(str(folder))
    model = apply_method(base.model, TrainSettings(method, tokens=5), str(folder))
    encoded = [base.encode(example) for example in tiny_examples(8)]
    loss, count = completion_loss(model, [[one] for one in encoded], base.pad, base.device)
    expected = 0.0
    for one in encoded:  # each alone, by transformers' and PEFT's own loss
        labels = torch.tensor([[-100] * one.start + list(one.ids[one.start :])])
        expected += float(model(torch.tensor([one.ids]), labels=labels).loss) * (len(one.ids) - one.start)
    assert count == sum(len(one.ids) - one.start for one in encoded)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    text = base.tokenizer.decode(encoded[1].ids[encoded[1].start :])
    assert text == "It is 1 [1].<|im_end|>"


@pytest.mark.parametrize("method", ["full", "prefix", "prompt"])
def test_packed_examples_have_the_loss_and_gradient_of_separate_ones(folder: Path, method: Method) -> None:
    base = Base(str(folder))
    model = apply_method(base.model, TrainSettings(method, tokens=5), str(folder))
    texts = ["Alpha beta gamma delta. " * 8, "Epsilon zeta eta theta. " * 8]
    examples = [
        Example((Message("system", "Be short."), Message("user", f"{text}\n\nQuestion {at}{'?' * at}")), f"It is {at}.")
        for text in texts
        for at in range(4)
    ]
    encoded = [base.encode(example) for example in [*examples, *tiny_examples(1)]]
    rows = pack_rows(encoded, 2048)
    assert rows == [(0, 1, 2, 3), (4, 5, 6, 7), (8,)]
    apart = sum(len(one.ids) for one in encoded)
    assert sum(row_tokens([encoded[at] for at in row]) for row in rows) < 0.5 * apart
    assert max(map(len, pack_rows(encoded, 1))) == 1

    def learned(rows: list[tuple[int, ...]]) -> tuple[float, int, torch.Tensor]:
        model.zero_grad()
        packed = [[encoded[at] for at in row] for row in rows]
        loss, count = completion_loss(model, packed, base.pad, base.device)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), count, torch.cat([one.grad.flatten() for one in trainable_parameters(model).values()])

    shared, count, gradient = learned(rows)
    alone, same_count, expected = learned([(at,) for at in range(len(encoded))])
    assert count == same_count
    assert shared == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_prefixes_are_shared_only_if_the_model_takes_any_mask(folder: Path) -> None:
    config = Base(str(folder)).model.config
    assert shares_prefixes(config)
    config.sliding_window = 128
    assert not shares_prefixes(config)


def test_each_example_occurs_once_per_epoch_in_batches_of_similar_length() -> None:
    lengths = [random.Random(at).randint(10, 400) for at in range(500)]
    rows = [(at,) for at in range(500)]
    steps = plan_steps(rows, lengths, epochs=2, batch=8, max_tokens=2048, seed=1)
    seen = [at for step in steps for part in step for (at,) in part]
    assert sorted(seen) == sorted([*range(500)] * 2)
    padded = sum(len(part) * max(lengths[at] for (at,) in part) for step in steps for part in step)
    assert padded < 1.1 * 2 * sum(lengths)
    assert all(len(part) * max(lengths[at] for (at,) in part) <= 2048 for step in steps for part in step)
    assert plan_steps(rows, lengths, epochs=2, batch=8, max_tokens=2048, seed=1) == steps
    assert plan_steps(rows, lengths, epochs=2, batch=8, max_tokens=2048, seed=2) != steps
    half = plan_steps(rows, lengths, epochs=0.5, batch=8, max_tokens=2048, seed=0)
    assert sum(len(part) for step in half for part in step) == 250
    threes = [(at, at + 1, at + 2) for at in range(0, 300, 3)]
    sizes = [
        sum(map(len, part))
        for step in plan_steps(threes, lengths[:100], epochs=1, batch=8, max_tokens=2048, seed=1)
        for part in [[row for part in step for row in part]]
    ]
    assert sum(sizes) == 300
    assert set(sizes[:-1]) <= {3, 6, 9}


def test_training_stops_early_and_keeps_the_best_weights(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=20, rate=0.05, validate_every=1, patience=2)
    trained = training(folder, tmp_path / "out", settings, valid=tiny_examples(4))
    numbers = trained.run()
    assert numbers["steps"] < numbers["of_steps"]
    best = min(trained.state.valid, key=lambda point: point[1])
    assert numbers["kept_step"] == best[0]
    trained.model.eval()
    rows = [[trained.base.encode(example)] for example in tiny_examples(4)]
    with torch.no_grad(), trained.loop.autocast():
        loss, tokens = completion_loss(trained.model, rows, trained.base.pad, trained.base.device)
    assert loss.item() / tokens == pytest.approx(best[1], abs=1e-3)


def interrupted(folder: Path, out: Path, settings: TrainSettings, **given: Any) -> Training:
    """A training run that a Ctrl-C ended after six of its steps."""
    trained = training(folder, out, settings, **given)

    def stop(progress: Progress) -> None:
        if progress.done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained.run(stop)
    return trained


def test_a_run_goes_on_without_its_best_weights(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(SETTINGS, validate_every=2)
    given = {"valid": tiny_examples(2)}
    whole = training(folder, tmp_path / "whole", settings, **given)
    whole.run()
    interrupted(folder, tmp_path / "damaged", settings, **given)
    shutil.copytree(tmp_path / "damaged", tmp_path / "lost")
    (tmp_path / "lost" / BEST).unlink()
    damaged = tmp_path / "damaged" / BEST
    damaged.write_bytes(damaged.read_bytes()[:100])
    for name in ("damaged", "lost"):
        caplog.clear()
        resumed = training(folder, tmp_path / name, settings, **given)
        numbers = resumed.run()
        assert "The best weights so far are lost" in caplog.text
        assert numbers["kept_step"] > 6
        assert [loss for _, loss in resumed.state.losses] == pytest.approx([loss for _, loss in whole.state.losses])

    (tmp_path / "lost" / BEST).unlink()  # between the last step and the adapter
    again = training(folder, tmp_path / "lost", settings, **given)
    numbers = again.run()
    assert numbers["kept_step"] == len(again.steps)
    write_adapter(again, numbers, card={})


def test_what_a_killed_run_left_needs_no_more_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = interrupted(folder, tmp_path / "out", SETTINGS)
    half_written = tmp_path / "out" / f"{CHECKPOINT}.0123abcd.new"
    half_written.write_bytes(b"half")
    saved = (tmp_path / "out" / CHECKPOINT).stat().st_size
    needed = int(trained._disk_mb * 2**20)
    resumed = training(folder, tmp_path / "out", SETTINGS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - saved - 1))
    with pytest.raises(RagfmError, match="MB left"):
        resumed.run()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - saved + 1))
    resumed.run()
    assert not half_written.exists()


def test_another_start_adapter_is_another_run(folder: Path, tmp_path: Path) -> None:
    short = replace(SETTINGS, epochs=0.2)
    start = training(folder, tmp_path / "start", short)
    write_adapter(start, start.run(), card={})
    settings = replace(SETTINGS, start=str(tmp_path / "start"))
    interrupted(folder, tmp_path / "out", settings)
    shutil.rmtree(tmp_path / "start")
    other = training(folder, tmp_path / "start", replace(short, seed=1))
    write_adapter(other, other.run(), card={})
    with pytest.raises(DataError, match="a different training run: start_weights"):
        training(folder, tmp_path / "out", settings).run()


def test_a_run_that_was_killed_before_its_checkpoint_begins_again(folder: Path, tmp_path: Path) -> None:
    """In a folder with files of others, which has no mark."""
    (tmp_path / "notes.txt").write_text("mine")
    write_tensors(tmp_path / BEST, {}, {})
    trained = training(folder, tmp_path)
    write_adapter(trained, trained.run(), card={})
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_need_attention_and_room(folder: Path, tmp_path: Path, method: Method) -> None:
    base, settings = Base(str(folder)), replace(SETTINGS, method=method, tokens=9)
    longest = max(len(base.encode(example).ids) for example in tiny_examples())
    base.window = longest + 9
    assert Training(base, tiny_examples(), tmp_path / "out", settings).too_long == 0
    base.window -= 1
    assert Training(base, tiny_examples(), tmp_path / "out", settings).too_long > 0
    base.model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ConfigError, match=f"which the method {method} cannot train"):
        Training(base, tiny_examples(), tmp_path / "out", settings)


_STOPS = """
import json, os, random, signal, sys, time
from contextlib import suppress
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from pathlib import Path
from support.tiny_models import tiny_examples
from ragfm.training.base_model import Base
from ragfm.training.checkpoint import read_tensors
from ragfm.training.training_loop import interrupts_between_steps
from ragfm.training.methods import apply_method
from ragfm.training.train_settings import TrainSettings
from ragfm.training.trainer import Training
from ragfm.models.adapters import CHECKPOINT
model, out, method, stop = sys.argv[1], Path(sys.argv[2]), sys.argv[4], signal.Signals[sys.argv[5]]
# Killed runs continue from the checkpoint of each step; at Ctrl-C a run writes the only one.
settings = TrainSettings(method, rank=4, dropout=0.1, epochs=8, batch=5, rate=5e-3,
                         checkpoint_seconds=0 if stop == signal.SIGKILL else 1e9, validate_every=4, patience=99)
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in background jobs

def train(folder, progress=None):
    training = Training(Base(model), tiny_examples(), folder, settings, valid=tiny_examples(3))
    training.run(progress)
    return [[loss for _, loss in training.state.losses], [value for _, value in training.state.valid]]

chance, stopped_at = random.Random(5), [0]
while len(stopped_at) < 6 and stopped_at[-1] < 40:
    steps, reported = os.pipe()
    child = os.fork()
    if not child:
        with suppress(KeyboardInterrupt):
            train(out / "stopped", lambda now: os.write(reported, bytes([now.done])))
        os._exit(0)
    os.close(reported)
    done = os.read(steps, 1)[0]
    assert done > stopped_at[-1], (done, stopped_at)
    until = done + chance.randint(1, 4)
    while done < until:
        done = os.read(steps, 1)[0]
    time.sleep(chance.random() * 0.02)
    os.kill(child, stop)
    status = os.waitpid(child, 0)[1]
    assert status == (signal.SIGKILL if stop == signal.SIGKILL else 0), status
    done = max(os.read(steps, 255), default=done)
    tensors, about = read_tensors(out / "stopped" / CHECKPOINT)
    # A step is reported before its checkpoint is written.
    assert about["step"] >= done - (stop == signal.SIGKILL), (done, about["step"])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    stopped_at.append(about["step"])
print(json.dumps([train(out / "whole"), train(out / "stopped"), stopped_at]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stop"),
    [("lora", signal.SIGINT), *((method, signal.SIGKILL) for method in METHODS)],  # Ctrl-C knows nothing of the method
    ids=lambda one: getattr(one, "name", one),
)
def test_a_run_that_is_stopped_has_the_losses_of_an_uninterrupted_one(
    folder: Path, tmp_path: Path, method: str, stop: signal.Signals
) -> None:
    """Each run is a fork of a process that has loaded the libraries, stopped at a random moment."""
    support = str(Path(__file__).parents[1])
    words = [sys.executable, "-X", "faulthandler", "-c", _STOPS, str(folder), str(tmp_path), support, method, stop.name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    whole, stopped, stopped_at = json.loads(done.stdout.splitlines()[-1])
    assert len(whole[0]) == 48
    assert len(stopped_at) > 3
    for one, other in zip(whole, stopped, strict=True):
        assert other == pytest.approx(one, abs=1e-3)


def test_a_ctrl_c_waits_for_the_step_and_a_second_one_does_not() -> None:
    reached = list[str]()

    def run(signals: int, *, stops: bool) -> None:
        with interrupts_between_steps() as raise_if_interrupted:
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
            reached.append("end of the step")
            if stops:
                raise_if_interrupted()
            reached.append("end of the block")

    for signals, stops, expected in (
        (1, True, ["end of the step"]),
        (1, False, ["end of the step", "end of the block"]),
        (2, True, []),
    ):
        reached.clear()
        with pytest.raises(KeyboardInterrupt):
            run(signals, stops=stops)
        assert reached == expected
    run(0, stops=True)  # nothing is left of the signals before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """Limit files to `left` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    write_tensors(path, {"a": torch.ones(10)}, {"step": 1})
    with full_disk(4096), pytest.raises(OSError, match="File too large"):
        write_tensors(path, {"a": torch.zeros(10_000)}, {"step": 2})
    assert read_tensors(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_adapter_that_failed_to_be_written_is_written_next_time(folder: Path, tmp_path: Path, method: Any) -> None:
    settings = replace(SETTINGS, method=method, rank=4, epochs=0.2)
    trained = training(folder, tmp_path / "out", settings)
    numbers = trained.run()
    with full_disk(8192), pytest.raises(OSError, match="File too large"):
        write_adapter(trained, numbers, card={})
    assert {file.name for file in (tmp_path / "out").iterdir()} == {CHECKPOINT, OUTPUT}
    again = training(folder, tmp_path / "out", settings)
    write_adapter(again, again.run(), card={})
    check_adapter(tmp_path / "out", folder)


def test_too_little_disk_space_is_reported_before_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(RagfmError, match="0 MB left, and training needs"):
        training(folder, tmp_path / "out").run()


def test_a_checkpoint_of_a_different_run_is_refused(folder: Path, tmp_path: Path) -> None:
    training(folder, tmp_path / "out").run()
    with pytest.raises(DataError, match="epochs 2 there, 3 now"):
        training(folder, tmp_path / "out", replace(SETTINGS, epochs=3)).run()


def test_a_truncated_base_is_reported_as_damaged(folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedModelError, match="cannot load"):
        Base(str(base))


def test_weights_that_ragfm_did_not_write_are_never_replaced(folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    weights = (base / "model.safetensors").read_bytes()
    whole = replace(SETTINGS, method="full")
    for out, why in ((base, "is the base itself"), (base / "new", "is inside the base model")):
        with pytest.raises(DataError, match=why):
            training(base, out, whole).run()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("model-00001-of-00002.safetensors", "adapter_config.json"):
        (theirs / name).write_text("{}")
        with pytest.raises(DataError, match=f"already has a model: {name}"):
            training(base, theirs).run()
        (theirs / name).unlink()
    (theirs / "notes.txt").touch()
    training(base, theirs).run()  # and goes on there, though it has no mark
    training(base, theirs).run()
    assert (base / "model.safetensors").read_bytes() == weights


def test_an_adapter_for_other_weights_or_another_prompt_is_refused(folder: Path, tmp_path: Path) -> None:
    trained = training(folder, tmp_path / "out", replace(SETTINGS, epochs=0.2))
    write_adapter(trained, trained.run(), card={"prompt": "another"})
    other = tiny_model(tmp_path / "other", hidden_size=32)
    with pytest.raises(AdapterMismatchError, match="on different weights"):
        check_adapter(tmp_path / "out", other)
    with pytest.raises(AdapterMismatchError, match="for a different prompt"):
        check_adapter(tmp_path / "out", folder, prompt_fingerprint())
    check_adapter(tmp_path / "out", folder)
    with pytest.raises(DataError, match="already contains an adapter"):
        training(folder, tmp_path / "out").run()
    weights = tmp_path / "out" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedModelError, match="do not match its ragfm-adapter"):
        check_adapter(tmp_path / "out", folder)
    (tmp_path / "out" / RECORD).unlink()
    with pytest.raises(ModelNotFoundError, match="is not an adapter folder"):
        check_adapter(tmp_path / "out", folder)
    (tmp_path / "out" / CHECKPOINT).touch()
    with pytest.raises(ModelNotFoundError, match="has not finished"):
        check_adapter(tmp_path / "out", folder)


def test_the_learning_rate_warms_up_and_falls_by_a_cosine(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=4, batch=5, warmup=0.25)
    rates = []
    trained = training(folder, tmp_path / "out", settings)
    trained.run(lambda _: rates.append(trained.loop.optimizer.param_groups[0]["lr"] / 5e-3))
    steps = len(trained.steps)
    warm = round(0.25 * steps)
    assert len(rates) == steps >= 20
    assert rates[:warm] == pytest.approx([(at + 1) / warm for at in range(warm)])
    assert rates[warm] == 1
    falling = [0.5 * (1 + math.cos(math.pi * at / (steps - warm))) for at in range(steps - warm)]
    assert rates[warm:] == pytest.approx(falling)


def test_training_continues_from_an_adapter(folder: Path, tmp_path: Path) -> None:
    first = training(folder, tmp_path / "first", replace(SETTINGS, epochs=6, rate=2e-2))
    numbers = first.run()
    write_adapter(first, numbers, card={})
    start = replace(SETTINGS, start=str(tmp_path / "first"), epochs=1, rate=1e-9)
    onward = training(folder, tmp_path / "more", replace(start, rank=16))
    more = onward.run()
    assert write_adapter(onward, more, card={}).settings["rank"] == 4  # that of the adapter, whatever is asked for
    assert (tmp_path / "more" / OUTPUT).is_file()
    assert more["loss"]["first"] == pytest.approx(numbers["loss"]["last_5"], rel=0.4)
    assert more["loss"]["first"] < 0.7 * numbers["loss"]["first"]
    with pytest.raises(ConfigError, match="was trained with lora, not ia3"):
        training(folder, tmp_path / "other", replace(start, method="ia3"))
    other = tiny_model(tmp_path / "other-model", hidden_size=32)
    with pytest.raises(AdapterMismatchError, match="trained on different weights"):
        training(other, tmp_path / "other", start)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_training_continues_from_virtual_tokens(folder: Path, tmp_path: Path, method: Any) -> None:
    settings = replace(SETTINGS, method=method, tokens=4, rate=RATES[method])
    first = training(folder, tmp_path / "first", settings)
    numbers = first.run()
    write_adapter(first, numbers, card={})
    more = training(folder, tmp_path / "more", replace(settings, start=str(tmp_path / "first"), rate=1e-9))
    (learned,), (expected,) = ([*weight_tensors(one.model).values()] for one in (more, first))
    torch.testing.assert_close(learned, expected)
    assert more.run()["loss"]["first"] == pytest.approx(numbers["loss"]["last_5"], rel=0.4)
    write_adapter(more, more.run(), card={})
    check_adapter(tmp_path / "more", folder)


def test_training_needs_an_example(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no example"):
        training(folder, tmp_path / "out", examples=[])
    with pytest.raises(DataError, match="of at most 9 tokens"):
        training(folder, tmp_path / "out", replace(SETTINGS, most_tokens=9))
    assert training(folder, tmp_path / "one", examples=tiny_examples(1)).run()["steps"] == 2


@pytest.mark.slow
def test_the_command_prints_an_estimate_and_trains(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train.jsonl").write_bytes(examples_to_jsonl(tiny_examples()))
    (tmp_path / "made" / "card.json").write_text(json.dumps({"prompt": "p", "sources": []}))
    words = ["made", "--base", str(folder), "--rank", "2", "--rate", "0.005", "--json"]
    shell = Shell(tmp_path)
    done = shell("adapt", "train", *words)
    said = json.loads(done.stdout)
    assert said["plan"]["peak_mb"] > 100
    assert "30 examples" in done.stderr
    assert f"base: {folder}, without an adapter" in done.stderr
    assert "there are no validation examples" in done.stderr
    record = read_record(tmp_path / "ragfm-adapter")
    assert (record.method, record.prompt, record.numbers["steps"]) == ("lora", "p", 2)
    assert "already contains an adapter" in shell("adapt", "train", *words, code=1).stdout
    (tmp_path / "none.jsonl").touch()
    assert "no example in none.jsonl" in shell("adapt", "train", "none.jsonl", "--base", str(folder), code=1).stderr
    assert "file of examples" in shell("adapt", "train", "nowhere", code=1).stderr
