"""Training on examples with images, with tiny models of real architectures, compared with the library's own loss."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny_models import tiny_examples, tiny_model
from support.tiny_vision import KINDS, tiny_vision

from ragfm.core.errors import ConfigError, DataError, UnsupportedError
from ragfm.core.types import ImagePart, Message, Sampling
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.generation.readers import load_reader
from ragfm.models.adapters import serving_adapter
from ragfm.training import train
from ragfm.training.adapter_export import export_adapter
from ragfm.training.adapter_folder import write_adapter
from ragfm.training.base_model import Base, generate_greedy
from ragfm.training.dataset import Dataset, write_dataset
from ragfm.training.example_formats import write_example_format
from ragfm.training.examples import TRAIN, VALID, Example, examples_digest, examples_to_jsonl, read_examples
from ragfm.training.methods import apply_method
from ragfm.training.train_settings import MethodSettings, TrainSettings
from ragfm.training.trainer import Training, shares_prefixes
from ragfm.training.training_batches import completion_logprobs, pack_rows

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainSettings(MethodSettings(rank=8, dropout=0.1), epochs=3, batch=2, rate=5e-3)


def colour(name: str) -> ImagePart:
    buffer = io.BytesIO()
    Image.new("RGB", (70, 56), name).save(buffer, "PNG")
    return ImagePart(buffer.getvalue(), "image/png")


def asking(*images: ImagePart, completion: str = "Red [1].") -> Example:
    return Example((Message("system", "Be brief."), Message("user", ("[1] A chart: ", *images, "Which?"))), completion)


RED, BLUE = asking(colour("red")), asking(colour("blue"), completion="Blue!")
TWO = asking(colour("red"), colour("blue"), completion="Both.")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision(tmp_path_factory.mktemp("model") / "qwen", "qwen2_vl")


def library_loss(base: Base, example: Example) -> tuple[float, int]:
    """The loss of a conversation that transformers' processor prepares, and the number of tokens it is the mean of."""
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "image", "image": Image.open(io.BytesIO(part.data)).convert("RGB")}
                for part in message.parts
            ],
        }
        for message in (*example.messages, Message("assistant", example.completion))
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    prompt = base.processor.apply_chat_template(turns[:-1], add_generation_prompt=True, **options)
    inputs = base.processor.apply_chat_template(turns, **options)
    labels = inputs["input_ids"].clone()
    labels[:, : prompt["input_ids"].shape[1]] = -100
    labels[:, -1] = -100  # the line break after the turn
    with torch.no_grad():
        return float(base.model(**inputs, labels=labels).loss), int((labels != -100).sum())


def test_the_loss_is_that_of_the_library(folder: Path, tmp_path: Path) -> None:
    """With images of several sizes next to text, in one batch."""
    examples = [RED, BLUE, TWO, *tiny_examples(4)]
    base = Base(str(folder), vision=True)
    expected = [library_loss(base, example) for example in examples]
    training = Training(base, examples, tmp_path / "out", SETTINGS)
    base = Base(str(folder), vision=True)
    training.model, training.base = base.model, base
    rows, _ = training._pack(training._train.encoded)
    with torch.no_grad():
        logprobs, tokens = training._logprobs(training._train.encoded, rows)
    assert tokens == sum(count for _, count in expected)
    order = [index for row in rows for index in row]
    ours = dict(zip(order, (-logprobs).tolist(), strict=True))
    assert [ours[index] for index in range(len(examples))] == pytest.approx(
        [loss * count for loss, count in expected], rel=1e-4
    )


def test_examples_with_images_are_not_packed_and_text_is(folder: Path) -> None:
    base = Base(str(folder), vision=True)
    text = "The quick brown fox jumps over the lazy dog. " * 4
    about = [Example((Message("user", f"{text}Question {number}"),), f"It is {number}.") for number in range(3)]
    encoded = [base.encode(example) for example in [*about, RED, replace(BLUE, completion=RED.completion)]]
    assert encoded[3].ids == encoded[4].ids
    rows = pack_rows(encoded, 2048)
    assert sorted(rows, key=len) == [(3,), (4,), (0, 1, 2)]
    if not shares_prefixes(base.model.config.get_text_config()):
        return  # Gemma 3, which has sliding attention
    with torch.no_grad():
        shared, _ = completion_logprobs(base.model, [encoded[:3]], base.pad, base.device)
        alone, _ = completion_logprobs(base.model, [[one] for one in encoded[:3]], base.pad, base.device)
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_only_the_language_part_is_adapted(folder: Path, method: Any) -> None:
    base = Base(str(folder), vision=True)
    layers = {name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert any("language_model" not in name and name.endswith(("q_proj", "fc2", "qkv")) for name in layers)
    model = apply_method(base.model, MethodSettings(method, rank=4), base.name)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learned
    assert all("language_model.layers." in name for name in learned)
    if method == "lora":
        assert len(learned) == 2 * 7 * 2  # layers, matrices, A and B


@pytest.mark.slow
def test_a_model_learns_from_pictures_and_the_reader_serves_it(folder: Path, tmp_path: Path) -> None:
    """Two prompts that differ only in their picture, and one of text, get different answers."""
    text = Example((Message("user", "What is it?"),), "Text.")
    examples = [RED, BLUE, text]
    settings = TrainSettings(MethodSettings(rank=16), epochs=80, batch=3, rate=2e-2, patience=99)
    training = Training(Base(str(folder), vision=True), examples, tmp_path / "out", settings, valid=examples)
    figures = training.run()
    write_adapter(training, figures, card={"prompt": prompt_fingerprint()})

    reader = load_reader(f"transformers:{folder}", dtype="float32", device="cpu", vision=True)
    adapter = serving_adapter(tmp_path / "out", f"transformers:{folder}", prompt_fingerprint())

    def answers(reader: Any, adapter: str | None = None) -> list[str]:
        sampling = Sampling(max_tokens=12, adapter=adapter)
        return ["".join(reader.stream(example.messages, sampling)) for example in examples]

    assert answers(reader, adapter) == [example.completion for example in examples]
    if folder.name != "gemma3":  # by default it is merged as a language model, without its processor
        merged = export_adapter(tmp_path / "out", "merged", out=tmp_path / "merged")
        assert answers(load_reader(f"transformers:{merged}", dtype="float32", device="cpu")) == answers(reader, adapter)
    with pytest.raises(UnsupportedError, match=r"models with vision .* cannot be converted to GGUF .*--to merged"):
        export_adapter(tmp_path / "out", "gguf", out=tmp_path / "adapter.gguf")


def test_an_interrupted_run_continues(qwen: Path, tmp_path: Path) -> None:
    examples = [RED, BLUE, TWO, *tiny_examples(3)]
    whole = Training(Base(str(qwen)), examples, tmp_path / "whole", SETTINGS, valid=[RED])
    whole.run()

    def stop(now: Any) -> None:
        if now.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Training(Base(str(qwen)), examples, tmp_path / "stopped", SETTINGS, valid=[RED]).run(stop)
    continued = Training(Base(str(qwen)), examples, tmp_path / "stopped", SETTINGS, valid=[RED])
    continued.run()
    assert len(whole.state.losses) == 9
    assert [loss for _, loss in continued.state.losses] == pytest.approx([loss for _, loss in whole.state.losses])
    other = [replace(RED, messages=BLUE.messages), *examples[1:]]  # the same words, another picture
    with pytest.raises(DataError, match="different training run: examples"):
        Training(Base(str(qwen)), other, tmp_path / "stopped", SETTINGS, valid=[RED]).run()


@pytest.mark.slow
def test_preferences_with_images(qwen: Path, tmp_path: Path) -> None:
    examples = [replace(RED, rejected="Green."), replace(BLUE, rejected="Red.")]
    settings = replace(SETTINGS, objective="kto", rate=2e-2, epochs=6)
    figures = Training(Base(str(qwen)), examples, tmp_path / "out", settings).run()
    assert figures["loss"]["last_5"] < 0.9 * figures["loss"]["first"]


def test_generation_after_pictures_is_that_of_a_new_model(qwen: Path) -> None:
    """Qwen2-VL keeps the positions of the last picture."""
    base, examples = Base(str(qwen)), tiny_examples(6)
    fresh = [generate_greedy(base.model, base, example.messages, 12) for example in examples]
    generate_greedy(base.model, base, asking(*[colour("red")] * 20).messages, 1)
    assert [generate_greedy(base.model, base, example.messages, 12) for example in examples] == fresh


def test_files_of_examples_have_images(tmp_path: Path) -> None:
    write_dataset(Dataset((RED, TWO), (BLUE,)), tmp_path / "examples")
    assert read_examples(tmp_path / "examples" / TRAIN) == [RED, TWO]
    assert read_examples(tmp_path / "examples" / VALID) == [BLUE]
    assert len(list((tmp_path / "examples" / "images").iterdir())) == 2
    assert examples_digest([RED]) != examples_digest([replace(RED, messages=BLUE.messages)])
    with pytest.raises(UnsupportedError, match="examples with images"):
        write_example_format(Dataset((RED,), ()), tmp_path, "trl")

    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "a.png").write_bytes(colour("red").data)
    line = json.loads(examples_to_jsonl([RED]))
    line["messages"][1]["content"][1]["image"] = "charts/a.png"
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    assert read_examples(tmp_path / "own.jsonl") == [RED]
    (tmp_path / "text.png").write_text("text")
    for part, why in (
        ({"type": "image", "image": f"../{tmp_path.name}.png"}, "is not in the folder"),
        ({"type": "image", "image": "/etc/passwd"}, "is not in the folder"),
        ({"type": "image", "image": "charts/missing.png"}, "cannot be read: No such file"),
        ({"type": "image", "image": "text.png"}, "is not a PNG, JPEG or WebP image"),
        ({"type": "image", "image": 1}, "is not an example"),
        ({"type": "video", "video": "a.mp4"}, "parts of the content must be texts or images"),
        ("text", "is not an example"),
    ):
        line["messages"][1]["content"][1] = part
        (tmp_path / "own.jsonl").write_text(json.dumps(line))
        with pytest.raises(DataError, match=why):
            read_examples(tmp_path / "own.jsonl")


def test_what_cannot_be_trained_is_refused(qwen: Path, tmp_path: Path) -> None:
    text = tiny_model(tmp_path / "text")
    with pytest.raises(UnsupportedError, match=r"An example has an image, and the base .*text cannot see images"):
        Training(Base(str(text)), [RED], tmp_path / "out", SETTINGS)
    with pytest.raises(UnsupportedError, match=r"the base .*text cannot see images"):
        train([RED], str(text), tmp_path / "out", settings=SETTINGS)
    for method in ("prefix", "prompt", "full"):
        settings = replace(SETTINGS, method=MethodSettings(method))
        with pytest.raises(ConfigError, match=f"{method} cannot train models with vision"):
            Training(Base(str(qwen)), tiny_examples(3), tmp_path / "out", settings)
    system = Example((Message("system", (colour("red"),)), Message("user", "Which?")), "Red.")
    with pytest.raises(UnsupportedError, match="message of the system has an image"):
        Training(Base(str(qwen)), [system], tmp_path / "out", SETTINGS)
