"""Examples for other trainers, adapters from other trainers, and exports for other servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from support.greedy import generate_greedy
from support.tiny_models import tiny_examples, tiny_gguf, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragfm.core.errors import DamagedModelError, ModelNotFoundError, UnsupportedError
from ragfm.core.output_folder import OUTPUT
from ragfm.core.types import Sampling
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.generation.readers import load_reader
from ragfm.models.adapters import PEFT_CONFIG, WEIGHTS, AdapterRecord, read_record, serving_adapter
from ragfm.training import TrainSettings, train
from ragfm.training.adapter_card import CARD, adapter_card
from ragfm.training.adapter_export import export_adapter, load_adapter
from ragfm.training.base_model import Base
from ragfm.training.gguf_lora import ModelShape

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = tiny_examples(1)[0].messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def other_trainers_adapter(base: Path, out: Path, kind: str) -> Path:
    """An adapter with random weights, in the form in which a trainer leaves its output folder."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    if kind == "axolotl":
        options |= {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj", "o_proj"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(out)
    config = json.loads((out / PEFT_CONFIG).read_text())
    if kind == "unsloth":
        AutoTokenizer.from_pretrained(base).save_pretrained(out)
        (out / "special_tokens_map.json").write_text("{}")
        mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"}
        config |= {
            "base_model_name_or_path": "unsloth/tiny-bnb-4bit",
            "auto_mapping": {**mapping, "unsloth_fixed": True},
            "unsloth_version": "2026.11",
            "target_modules": r"(?:.*?(?:language|text).*?)?\.?.*(q_proj|v_proj)",
        }
    elif kind == "axolotl":
        AutoTokenizer.from_pretrained(base).save_pretrained(out)
        (out / "config.json").write_bytes((base / "config.json").read_bytes())
        (out / "checkpoint-8").mkdir()
        config |= {"axolotl_config": {"datasets": []}}
    (out / PEFT_CONFIG).write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("kind", ["peft", "unsloth", "axolotl"])
def test_adapters_of_other_trainers_are_served_as_they_are(
    folder: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Their text is that of PEFT, next to requests with another adapter and with none."""
    theirs = other_trainers_adapter(folder, tmp_path / "theirs", kind)
    plain_lora = other_trainers_adapter(folder, tmp_path / "lora", "peft")
    config = json.loads((plain_lora / PEFT_CONFIG).read_text())
    (plain_lora / PEFT_CONFIG).write_text(json.dumps(config | {"lora_alpha": 32}))
    found = serving_adapter(theirs, f"transformers:{folder}", prompt_fingerprint())
    assert found == str(theirs)
    assert "was not trained by ragfm" in caplog.text
    base = Base(str(folder))
    expected = {None: generate_greedy(base.model, base, ASKED, 12)}
    for adapter in (str(theirs), str(plain_lora)):
        fresh = Base(str(folder))
        expected[adapter] = generate_greedy(load_adapter(fresh, adapter), fresh, ASKED, 12)
    assert len(set(expected.values())) == 3
    reader = load_reader(f"transformers:{folder}", device="cpu", dtype="float32")
    for _ in range(2):
        streams = {adapter: reader.stream(ASKED, Sampling(max_tokens=12, adapter=adapter)) for adapter in expected}
        texts = {adapter: "".join(stream) for adapter, stream in streams.items()}
        assert {adapter: text.strip(" \ufffd") for adapter, text in texts.items()} == {
            adapter: text.strip(" \ufffd") for adapter, text in expected.items()
        }


def test_an_adapter_of_another_trainer_is_exported_merged_and_trained_further(folder: Path, tmp_path: Path) -> None:
    theirs = other_trainers_adapter(folder, tmp_path / "theirs", "unsloth")
    assert read_record(theirs).method == "lora"
    with pytest.raises(ModelNotFoundError, match="unsloth/tiny-bnb-4bit"):
        export_adapter(theirs, "gguf")
    base = AutoModelForCausalLM.from_pretrained(folder)
    file = tiny_gguf(base, tmp_path / "base.gguf", ModelShape.from_config(base.config))
    with pytest.raises(ModelNotFoundError, match=r"has no adapter\.gguf"):
        serving_adapter(theirs, f"llama-cpp:{file}", prompt_fingerprint())
    written = export_adapter(theirs, "gguf", base=str(file))
    assert serving_adapter(theirs, f"llama-cpp:{file}", prompt_fingerprint()) == str(written)
    merged = export_adapter(theirs, "merged", base=str(folder), out=tmp_path / "merged")
    ids = torch.tensor([[5, 77, 31, 200]])
    with torch.no_grad():
        adapted = load_adapter(Base(str(folder)), theirs)(ids).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(merged)(ids).logits, adapted)
    settings = TrainSettings("lora", start=str(theirs), epochs=0.5)
    record = train(tiny_examples(8), str(folder), tmp_path / "further", settings=settings)
    assert record.settings["rank"] == 4


def test_a_half_written_adapter_of_ragfm_is_not_taken_for_one_of_another_trainer(folder: Path, tmp_path: Path) -> None:
    theirs = other_trainers_adapter(folder, tmp_path / "theirs", "peft")
    (theirs / OUTPUT).touch()
    with pytest.raises(ModelNotFoundError, match="training has not finished"):
        serving_adapter(theirs, f"transformers:{folder}", prompt_fingerprint())


def test_an_incomplete_copy_of_an_adapter_of_another_trainer_is_an_error(folder: Path, tmp_path: Path) -> None:
    adapter = other_trainers_adapter(folder, tmp_path / "adapter", "trl")
    weights = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(weights[:-8])
    for form in ("gguf", "merged"):
        with pytest.raises(DamagedModelError, match="Cannot read"):
            export_adapter(adapter, form, base=str(folder), out=tmp_path / form)


def test_an_adapter_with_whole_layers_cannot_run_elsewhere_and_merges(folder: Path, tmp_path: Path) -> None:
    theirs = other_trainers_adapter(folder, tmp_path / "theirs", "axolotl")
    with pytest.raises(UnsupportedError, match="whole layers") as refused:
        export_adapter(theirs, "gguf", base=str(folder), out=tmp_path / "gguf")
    assert "--to merged" in (refused.value.hint or "")
    merged = export_adapter(theirs, "merged", base=str(folder), out=tmp_path / "merged")
    ids = torch.tensor([[5, 77, 31, 200]])
    with torch.no_grad():
        adapted = load_adapter(Base(str(folder)), theirs)(ids).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(merged)(ids).logits, adapted)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "adapter"
    settings = TrainSettings("lora", rank=4, rate=1e-2)
    train(tiny_examples(8), str(folder), out, settings=settings, valid=tiny_examples(2), licence="cc0-1.0")
    return out


def test_an_adapter_has_a_model_card_with_data_licence_and_figures(trained: Path, folder: Path) -> None:
    card = (trained / CARD).read_text()
    assert f"base_model: {folder}\nlicense: cc0-1.0\nlibrary_name: peft" in card
    assert "| training examples | 8 |" in card
    loss = read_record(trained).numbers["loss"]
    assert f"{loss['first']:.3f}, {loss['last_5']:.3f}" in card
    record = AdapterRecord("lora", {"name": "my: model", "sha256": ""}, "", "", licence="CC0: see LICENCE")
    metadata = yaml.safe_load(adapter_card(record).split("---")[1])
    assert (metadata["base_model"], metadata["license"]) == ("my: model", "CC0: see LICENCE")


def test_methods_that_another_server_cannot_run_are_refused(folder: Path, tmp_path: Path) -> None:
    for method, hint in (("ia3", "--to merged"), ("prefix", "transformers reader")):
        settings = TrainSettings(method, tokens=4)  # type: ignore[arg-type]
        train(tiny_examples(4), str(folder), tmp_path / method, settings=settings)
        with pytest.raises(UnsupportedError) as refused:
            export_adapter(tmp_path / method, "gguf", out=tmp_path / "gguf")
        assert hint in (refused.value.hint or "")
    with pytest.raises(UnsupportedError, match="cannot be merged: they add tokens"):
        export_adapter(tmp_path / "prefix", "merged", out=tmp_path / "merged")
