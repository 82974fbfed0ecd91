"""Readers of images, with tiny models of real architectures, compared with what the libraries generate themselves."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_models import tiny_model
from support.tiny_vision import KINDS, tiny_llava_gguf, tiny_qwen_gguf, tiny_vision

from ragfm.core.errors import ConfigError, ContextOverflowError, DamagedModelError, ModelNotFoundError, UnsupportedError
from ragfm.core.types import ImagePart, Message, Sampling
from ragfm.generation.readers import load_reader
from ragfm.generation.readers.engine import BatchToken
from ragfm.generation.readers.llama_context import LlamaContext
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.generation.readers.transformers_reader import TransformersReader
from ragfm.models.llama_library import mtmd_library
from ragfm.models.thread_count import ThreadCount
from ragfm.testing import check_reader
from ragfm.testing.reader_contract import _check_images, _generate

TOKENS = 16
LONG = "The quick brown fox jumps over the lazy dog. " * 4
TEXT = [Message("user", f"{LONG}What is it?")]
Reader = TransformersReader | LlamaCppReader


def noise(width: int, height: int, seed: int = 0) -> ImagePart:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return ImagePart(buffer.getvalue(), "image/png")


IMAGE = noise(112, 84)
ASKED = [Message("system", "Be brief."), Message("user", ("[1] A chart: ", IMAGE, "[2] ", noise(60, 90, 1), "Which?"))]


def read(reader: Reader, messages: Sequence[Message], **sampling: Any) -> tuple[str, list[float], int]:
    stream = reader.stream(messages, Sampling(**{"max_tokens": TOKENS, "logprobs": True} | sampling))
    text = "".join(stream)
    return text, list(stream.logprobs), stream.usage.prompt_tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    folders = {kind: tiny_vision(root / kind, kind) for kind in KINDS}
    tiny_llava_gguf(folders["llava"], root / "llava.gguf")
    tiny_qwen_gguf(folders["qwen2_vl"], root / "qwen2_vl.gguf")
    return {**folders, **{path.name: path / "model.gguf" for path in root.glob("*.gguf")}}


@pytest.fixture(scope="module")
def load(folders: dict[str, Path]) -> Callable[[str], Reader]:
    @cache
    def load_once(kind: str) -> Reader:
        path = str(folders[kind])
        return (
            LlamaCppReader(path, threads=1, slots=4)
            if "gguf" in kind
            else TransformersReader(path, slots=4, vision=True)
        )

    return load_once


@pytest.fixture(params=[*KINDS, "llava.gguf", "qwen2_vl.gguf"])
def vision(request: pytest.FixtureRequest, load: Callable[[str], Reader]) -> Reader:
    return load(request.param)


@pytest.fixture(params=KINDS)
def reader(request: pytest.FixtureRequest, load: Callable[[str], Reader]) -> Reader:
    return load(request.param)


@pytest.fixture(params=["llava.gguf", "qwen2_vl.gguf"])
def llama(request: pytest.FixtureRequest, load: Callable[[str], Reader]) -> Reader:
    return load(request.param)


def another(reader: Reader, **options: Any) -> Reader:
    """Another reader of the same model."""
    if isinstance(reader, TransformersReader):
        options["vision"] = True
    return type(reader)(str(reader._path), **options)


def library_inputs(reader: TransformersReader, messages: Sequence[Message]) -> Any:
    """A conversation as the library's own processor prepares it."""
    turns = []
    for message in messages:
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": Image.open(io.BytesIO(part.data)).convert("RGB")}
            for part in message.parts
        ]
        turns.append({"role": message.role, "content": content})
    processor = reader._engine.model._processor
    return processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_transformers_generates_what_the_library_generates(reader: TransformersReader) -> None:
    model, inputs = reader._engine.model, library_inputs(reader, ASKED)
    text, logprobs, used = read(reader, ASKED)
    theirs = model._model.generate(
        **inputs, max_new_tokens=TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    prompt = inputs["input_ids"].shape[1]
    tokens = theirs.sequences[0, prompt:].tolist()
    assert used == reader.count_tokens(ASKED) == prompt
    expected = model._tokenizer.decode(tokens, skip_special_tokens=True)
    assert text.rstrip("\ufffd") == expected.rstrip("\ufffd")  # a character that is cut off is not streamed
    theirs_logprobs = [
        float(torch.log_softmax(row[0], -1)[token])
        for row, token in zip(theirs.logits, tokens, strict=True)
        if token not in model.end_tokens
    ]
    assert logprobs == pytest.approx(theirs_logprobs, abs=1e-4)


def test_transformers_reads_text_as_the_library_does(reader: TransformersReader) -> None:
    """The attention and positions of a vision model in the reader's own cache, alone and next to images."""
    model, inputs = reader._engine.model, library_inputs(reader, TEXT)
    theirs = model._model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    expected = model._tokenizer.decode(theirs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert read(reader, TEXT)[0].rstrip("\ufffd") == expected.rstrip("\ufffd")


def test_images_keep_the_contract(vision: Reader) -> None:
    text, _ = _generate(vision, [Message("user", "Count from one to ten, in words.")])
    _check_images(vision, text)


def test_text_next_to_images_is_that_of_text_alone(vision: Reader) -> None:
    """Slots are added while an image is being read; the prefix cache still serves text."""
    prompts = [TEXT, ASKED, [Message("user", f"{LONG}And what is this?")], [Message("user", ("See ", IMAGE, "?"))]]
    alone = [read(vision, prompt)[0] for prompt in prompts]
    fresh = another(vision, slots=4)
    for _ in range(2):
        streams = [fresh.stream(prompt, Sampling(max_tokens=TOKENS)) for prompt in prompts]
        assert ["".join(stream) for stream in streams] == alone
        assert streams[1].usage.cached_tokens == 0
    for _ in range(2):  # where slots are added only when no stream runs, it depends on the time which were kept
        stream = fresh.stream(TEXT, Sampling(max_tokens=TOKENS))
        assert "".join(stream) == alone[0]
    assert stream.usage.cached_tokens > len(LONG) // 2


def test_the_window_has_room_for_images(vision: Reader) -> None:
    tokens = vision.count_tokens(ASKED)
    assert tokens > vision.count_tokens([message if not message.images else TEXT[0] for message in ASKED]) - len(LONG)
    small = another(vision, context_tokens=tokens)
    with pytest.raises(ContextOverflowError, match=str(tokens)):
        small.stream(ASKED)
    larger = another(vision, context_tokens=tokens + 2)
    assert len(read(larger, ASKED, max_tokens=None)[1]) == 2


def test_an_idle_slot_between_busy_ones_keeps_its_content(load: Callable[[str], Reader]) -> None:
    """The embedding of token 0 of this model is zero, from which llama.cpp computes NaN."""
    model = load("qwen2_vl.gguf")._engine.model
    prompt = model.prompt_tokens(TEXT)
    end = len(prompt) - 1
    context = LlamaContext(model, slots=3, window=256, threads=ThreadCount(1))
    for slot in range(3):
        context.evaluate([BatchToken(token, at, slot, False) for at, token in enumerate(prompt[:-1])])
    last = BatchToken(prompt[-1], end, 1, True)
    expected = context.evaluate([last])[0].copy()
    context.evaluate([last._replace(slot=slot) for slot in (0, 2)])
    context.truncate(1, end)
    np.testing.assert_array_equal(context.evaluate([last])[0], expected)


def test_larger_images_are_scaled_before_they_are_counted(folders: dict[str, Path]) -> None:
    large = [Message("user", ("What is it?", noise(400, 400)))]
    counts = [TransformersReader(str(folders["qwen2_vl"]), image_side=side).count_tokens(large) for side in (112, 56)]
    assert counts[0] - counts[1] == 16 - 4


def test_models_that_are_also_language_models_see_only_if_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    assert TransformersReader(str(folders["qwen2_vl"])).vision
    assert not TransformersReader(str(folders["qwen2_vl"]), vision=False).vision
    text = TransformersReader(str(folders["gemma3"]))
    assert not text.vision
    with pytest.raises(UnsupportedError, match="cannot see images"):
        text.count_tokens(ASKED)
    seeing = TransformersReader(str(folders["gemma3"]), vision="true")
    assert seeing.vision
    assert read(text, TEXT)[0] == read(seeing, TEXT)[0]
    blind = tiny_model(tmp_path / "llama")
    assert not TransformersReader(str(blind)).vision
    with pytest.raises(ConfigError, match="no vision part"):
        TransformersReader(str(blind), vision=True)


def test_a_text_cannot_stand_for_an_image(reader: TransformersReader) -> None:
    mark = reader._engine.model._processor.image_token
    with pytest.raises(UnsupportedError, match="the token of an image, 2 times for 1 images"):
        reader.count_tokens([Message("user", (f"{mark} and ", IMAGE))])


def test_both_readers_see_the_same_in_the_same_weights(load: Callable[[str], Reader]) -> None:
    """Positions in three dimensions, scaled images and chat template included."""
    asked = [Message("user", ("[1] A chart: ", IMAGE, "What is it?"))]
    theirs, ours = (read(load(kind), asked) for kind in ("qwen2_vl", "qwen2_vl.gguf"))
    assert (ours[0], ours[2]) == (theirs[0], theirs[2])
    assert ours[1] == pytest.approx(theirs[1], abs=0.02)  # llama.cpp approximates GELU


def test_llama_cpp_generates_what_the_library_generates(llama: LlamaCppReader) -> None:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import MTMDChatHandler

    asked = [Message("user", ("[1] A chart: ", IMAGE, "What is it?"))]
    text, _, _ = read(llama, asked)
    handler = MTMDChatHandler(clip_model_path=str(llama._projector), verbose=False, use_gpu=False)
    library = Llama(str(llama._path), chat_handler=handler, n_ctx=2048, n_threads=1, verbose=False)
    url = {"url": f"data:image/png;base64,{base64.b64encode(IMAGE.data).decode()}"}
    content = [
        {"type": "text", "text": "[1] A chart: "},
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "What is it?"},
    ]
    answer = library.create_chat_completion(
        [{"role": "user", "content": content}], temperature=0.0, repeat_penalty=1.0, max_tokens=TOKENS
    )
    theirs = answer["choices"][0]["message"]["content"]  # without bytes that are no characters
    assert text.replace("\ufffd", "") == theirs.replace("\ufffd", "")


def test_text_loads_nothing_of_images(llama: LlamaCppReader) -> None:
    fresh = LlamaCppReader(str(llama._path), threads=1)
    read(fresh, TEXT)
    assert fresh._engine.model._projector is None
    code = (
        "import sys; from ragfm import Message, Sampling, load_reader\n"
        f"reader = load_reader({str(llama._path)!r}, threads=1)\n"
        "assert ''.join(reader.stream([Message('user', 'Hi')], Sampling(max_tokens=4)))\n"
        "sys.exit(str([name for name in ('PIL', 'llama_cpp.mtmd_cpp', 'torch') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
    assert fresh.memory_bytes[0] > LlamaCppReader(str(llama._path), projector="none").memory_bytes[0]


def test_projectors_are_found_or_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    model = Path(shutil.copytree(folders["qwen2_vl.gguf"].parent, tmp_path / "gguf")) / "model.gguf"
    asked = [Message("user", ("What is it?", IMAGE))]
    assert LlamaCppReader(str(model)).vision
    without = LlamaCppReader(str(model), projector="none")
    assert not without.vision
    with pytest.raises(UnsupportedError, match="cannot see images"):
        without.count_tokens(asked)

    other = shutil.copy(model.with_name("mmproj.gguf"), model.with_name("mmproj-2.gguf"))
    assert not LlamaCppReader(str(model)).vision  # which one?
    named = LlamaCppReader(str(model), projector=str(other), threads=1)
    assert read(named, asked)[2] == named.count_tokens(asked)
    with pytest.raises(ModelNotFoundError):
        LlamaCppReader(str(model), projector=str(tmp_path / "missing.gguf"))
    for name in (model, folders["llava.gguf"]):
        wrong = LlamaCppReader(str(model), projector=str(name), threads=1)
        with pytest.raises(DamagedModelError, match="is not a projector for"):
            wrong.stream(asked)
        assert read(wrong, TEXT)[0] == read(named, TEXT)[0]


def test_image_embeddings_of_llava_are_those_of_transformers_with_the_class_token_last(
    load: Callable[[str], Reader],
) -> None:
    """Or first, where llama.cpp puts it as CLIP does: decision 052."""
    asked = [Message("user", (noise(32, 32), "What is it?"))]
    model, prompt = (load("llava.gguf")._engine.model, load("llava.gguf")._engine.model.image_prompt(asked))
    library, embeddings = mtmd_library(), np.empty(0)
    for index in range(library.mtmd_input_chunks_size(prompt.inputs.handle)):
        chunk = library.mtmd_input_chunks_get(prompt.inputs.handle, index)
        if library.mtmd_input_chunk_get_type(chunk) == library.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            assert library.mtmd_encode_chunk(model._projector._handle, chunk) == 0
            size = library.mtmd_input_chunk_get_n_tokens(chunk) * 64
            embeddings = np.ctypeslib.as_array(library.mtmd_get_output_embd(model._projector._handle), (size,)).copy()

    theirs = load("llava")._engine.model
    llava, inputs = theirs._model.model, theirs.image_prompt(asked).inputs
    vision, similarities = llava.vision_tower, []
    with torch.inference_mode():
        patches = vision.embeddings.patch_embedding(inputs["pixel_values"]).flatten(2).transpose(1, 2)
        token = vision.embeddings.class_embedding.expand(1, 1, -1)
        for tokens in ([token, patches], [patches, token]):
            states = vision.pre_layrnorm(torch.cat(tokens, 1) + vision.embeddings.position_embedding.weight)
            for layer in vision.encoder.layers[:-1]:
                states = layer(states, None)
            features = llava.multi_modal_projector(states[:, 1:]).numpy().ravel()
            similarities.append(np.corrcoef(embeddings, features)[0, 1])
    assert max(similarities) > 0.999


def test_an_image_moves_to_a_context_with_more_slots(llama: LlamaCppReader) -> None:
    """Positions in three dimensions and all, or an error, after which the reader waits for the image's end."""
    model = llama._engine.model
    make = partial(LlamaContext, model, window=256, threads=ThreadCount(1))
    texts = []
    for moves in (False, True):
        context, tokens = make(1), []
        logits, position = context.evaluate_images(0, model.image_prompt(ASKED).inputs)
        for step in range(8):
            tokens.append(int(logits.argmax()))  # before the context that holds the logits is freed
            if moves and step == 3:
                context = context.resized(3)
            (logits,) = context.evaluate([BatchToken(tokens[-1], position + step, 0, True)])
        texts.append((tokens, logits.copy()))
    assert texts[0][0] == texts[1][0]
    assert np.array_equal(texts[0][1], texts[1][1])


def test_a_template_that_opens_the_reasoning_is_known_with_images(folders: dict[str, Path]) -> None:
    for kind in ("qwen2_vl", "qwen2_vl.gguf"):
        reader = load_reader(str(folders[kind]), thinking=True)
        assert not reader.opens_thinking(ASKED)  # type: ignore[attr-defined]


@pytest.mark.weights
def test_a_trained_model_sees() -> None:
    reader = load_reader(os.environ["RAGFM_VISION_MODEL"])
    check_reader(reader)
    for colour in ("red", "blue"):
        buffer = io.BytesIO()
        Image.new("RGB", (224, 224), colour).save(buffer, "PNG")
        image = ImagePart(buffer.getvalue(), "image/png")
        asked = Message("user", (image, "Which colour is this? Answer in one word."))
        assert colour in "".join(reader.stream([asked], Sampling(max_tokens=8))).casefold()
