"""Export of adapters: llama.cpp and transformers agree in all supported architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from support.greedy import readers_agree
from support.shell import Shell
from support.tiny_gguf import quantize
from support.tiny_models import tiny_examples, tiny_gguf, tiny_model
from transformers import AutoModelForCausalLM

from ragfm.core.errors import (
    AdapterMismatchError,
    DataError,
    ModelNotFoundError,
    UnsupportedError,
)
from ragfm.core.own_thread import in_own_thread
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import (
    GGUF_PROMPT,
    RECORD,
    WEIGHTS,
    AdapterRecord,
    check_adapter,
    read_record,
    serving_adapter,
    trained_weights_sha256,
)
from ragfm.models.llama_library import load_model
from ragfm.models.model_lookup import weights_sha256
from ragfm.training.adapter_export import export_adapter, load_adapter
from ragfm.training.adapter_folder import write_adapter
from ragfm.training.base_model import Base
from ragfm.training.gguf_lora import (
    ARCHITECTURES,
    ModelShape,
    check_same_weights,
    gguf_to_peft,
    not_plain_lora,
    peft_to_gguf,
)
from ragfm.training.methods import apply_method
from ragfm.training.train_settings import TrainSettings
from ragfm.training.trainer import Training

CHANGES: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": None},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "qwen3": {"head_dim": 16},
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
}
TOKENS = [5, 77, 31, 200, 9, 120, 42, 42, 8, 63]


@in_own_thread
def logits(model: Path, adapter: Path | None) -> np.ndarray:
    """llama.cpp's logits after the last token, computed in float32."""
    loaded = load_model(model)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 64, 1, 1
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(loaded, settings)
    if adapter:
        lora = llama_cpp.llama_adapter_lora_init(loaded, str(adapter).encode())
        assert lora
        scales = (llama_cpp.ctypes.c_float * 1)(1.0)
        llama_cpp.llama_set_adapters_lora(context, (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), 1, scales)
    tokens = (llama_cpp.llama_token * len(TOKENS))(*TOKENS)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(TOKENS))) == 0
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
    found = np.array(llama_cpp.llama_get_logits_ith(context, -1)[:size])
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(loaded)
    return found


def random_lora(model: Any, folder: Path, **changes: Any) -> Any:
    """Write a LoRA of all linear layers with random matrices as a PEFT folder; returns the adapted model."""
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **changes)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_llama_cpp_and_transformers_compute_the_same_logits(tmp_path: Path, kind: str) -> None:
    folder = tiny_model(tmp_path / "model", kind, **CHANGES.get(kind, {}))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    shape = ModelShape.from_config(model.config)
    base = tiny_gguf(model, tmp_path / "base.gguf", shape)
    with torch.no_grad():
        plain = model(torch.tensor([TOKENS])).logits[0, -1].numpy()
        np.testing.assert_allclose(logits(base, None), plain, atol=5e-3 * np.ptp(plain))  # the test's own conversion
        check_same_weights(model, base)
        adapted = random_lora(model, tmp_path / "lora")
        changed = adapted(torch.tensor([TOKENS])).logits[0, -1].numpy()
    assert np.abs(changed - plain).max() > 0.2 * np.ptp(plain)
    peft_to_gguf(tmp_path / "lora", tmp_path / "lora.gguf", shape, dtype="f32", about={GGUF_PROMPT: "p"})
    np.testing.assert_allclose(logits(base, tmp_path / "lora.gguf"), changed, atol=5e-3 * np.ptp(changed))
    # And back again: the same matrices.
    modules = [name for name, layer in model.named_modules() if isinstance(layer, peft.tuners.lora.Linear)]
    assert gguf_to_peft(tmp_path / "lora.gguf", tmp_path / "back", shape, modules)[GGUF_PROMPT] == "p"
    one, other = (load_file(tmp_path / where / WEIGHTS) for where in ("lora", "back"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_layer_with_its_own_scale_is_exported(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "model")).eval()
    shape = ModelShape.from_config(model.config)
    base = tiny_gguf(model, tmp_path / "base.gguf", shape)
    adapted = random_lora(model, tmp_path / "lora", use_rslora=True, alpha_pattern={"q_proj": 20})
    with torch.no_grad():
        changed = adapted(torch.tensor([TOKENS])).logits[0, -1].numpy()
    peft_to_gguf(tmp_path / "lora", tmp_path / "lora.gguf", shape, dtype="f32", about={})
    np.testing.assert_allclose(logits(base, tmp_path / "lora.gguf"), changed, atol=5e-3 * np.ptp(changed))


def recorded(folder: Path, out: Path) -> Path:
    """Write a random adapter with a record, as training does."""
    base = Base(str(folder))
    random_lora(base.model, out)
    about = {"name": str(folder), "sha256": weights_sha256(base.path)}
    (out / RECORD).write_bytes(
        AdapterRecord("lora", about, prompt_fingerprint(), trained_weights_sha256(out)).to_json()
    )
    return out


@pytest.mark.parametrize("form", [None, "F16", "BF16", "Q8_0", "Q4_0", "IQ4_NL", "Q5_1", "Q4_1"])
def test_an_adapter_trained_on_a_folder_serves_over_its_gguf_file(tmp_path: Path, form: str | None) -> None:
    folder = tiny_model(tmp_path / "model")
    file = in_form(folder, tmp_path / "base.gguf", form)
    out = recorded(folder, tmp_path / "lora")
    with pytest.raises(ModelNotFoundError) as none:
        serving_adapter(out, str(file), prompt_fingerprint())
    assert f"adapt export {out} --base {file}" in str(none.value)
    written = export_adapter(out, "gguf", base=str(file))
    for adapter in (out, written):
        assert serving_adapter(adapter, str(file), prompt_fingerprint()) == str(written)
    assert serving_adapter(out, str(folder), prompt_fingerprint()) == str(out)
    if form is None:
        assert readers_agree(out, written, tiny_examples(2), base=str(file))
    other = in_form(tiny_model(tmp_path / "other", seed=1), tmp_path / "other.gguf", form)
    with pytest.raises(AdapterMismatchError, match="on different weights"):
        serving_adapter(written, str(other), prompt_fingerprint())
    with pytest.raises(AdapterMismatchError, match=r"is off by 1\d\d\.\d%, where"):
        export_adapter(out, "gguf", base=str(other), out=tmp_path / "no.gguf")
    assert not (tmp_path / "no.gguf").exists()


def test_an_adapter_of_another_trainer_for_another_base_is_refused(tmp_path: Path) -> None:
    """It does not say what it was trained on."""
    random_lora(Base(str(tiny_model(tmp_path / "large", hidden_size=128))).model, tmp_path / "lora")
    base = Base(str(tiny_model(tmp_path / "model")))
    with pytest.raises(AdapterMismatchError, match="is not an adapter for"):
        apply_method(base.model, TrainSettings("lora"), base.name, str(tmp_path / "lora"))
    base = Base(str(tmp_path / "model"))
    with pytest.raises(AdapterMismatchError, match="is not an adapter for"):
        load_adapter(base, tmp_path / "lora")


def test_the_base_and_foreign_files_are_never_replaced(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    base = in_form(folder, tmp_path / "base.gguf", None)
    out = recorded(folder, tmp_path / "lora")
    (tmp_path / "link.gguf").symlink_to(base)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model-00001-of-00002.safetensors").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused: list[tuple[str, Path, dict[str, Any], str]] = [
        ("gguf", base, {"base": str(base)}, "the base itself"),
        ("gguf", tmp_path / "link.gguf", {"base": str(base)}, "the base itself"),
        ("gguf", base, {"base": str(folder)}, "is not a GGUF adapter"),
        ("merged", folder, {}, "the base itself"),
        ("merged", folder / "new", {}, "is inside the base model"),
        ("merged", out, {}, "the adapter itself"),
        ("merged", theirs, {}, "already has a model"),
    ]
    for form, place, options, why in refused:
        with pytest.raises(DataError, match=why):
            export_adapter(out, form, out=place, **options)
    written = export_adapter(out, "gguf", base=str(base))
    (theirs / "model-00001-of-00002.safetensors").rename(theirs / WEIGHTS)
    with pytest.raises(DataError, match="already has a model"):
        export_adapter(written, "peft", out=theirs, base=str(base))
    assert all(path.read_bytes() == content for path, content in before.items() if path.exists())
    # What ragfm wrote before is replaced, and a folder is named for what lies in it.
    assert export_adapter(out, "gguf", base=str(base), out=out) == written
    whole = export_adapter(out, "merged", out=tmp_path / "whole")
    (whole / "model-00002-of-00002.safetensors").touch()
    (whole / "model.safetensors.index.json").touch()
    export_adapter(out, "merged", out=whole)
    assert sorted(path.name for path in whole.glob("*.safetensors*")) == ["model.safetensors"]


def test_export_hides_deprecation_warnings_of_peft(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    out = recorded(tiny_model(tmp_path / "model"), tmp_path / "lora")
    recwarn.clear()
    export_adapter(out, "merged", out=tmp_path / "whole")
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_hidden_layers": 3}, "only it has blk.2"),
        ({"num_hidden_layers": 1}, "it lacks blk.1"),
        ({"intermediate_size": 64}, "a different shape"),
        ({"kind": "qwen2"}, "architecture is qwen2, not llama"),
    ],
)
def test_a_gguf_file_of_a_different_model_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "model"))
    other = in_form(tiny_model(tmp_path / "other", **changes), tmp_path / "other.gguf", None)
    with pytest.raises(AdapterMismatchError, match=why):
        check_same_weights(model, other)


@pytest.mark.parametrize(("form", "share"), [(None, 0.002), ("Q8_0", 0.02), ("Q4_0", 0.25)])
def test_a_fine_tuned_relative_is_detected_by_its_weights_or_norms(tmp_path: Path, form: str, share: float) -> None:
    folder = tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    file = in_form(folder, tmp_path / "base.gguf", form)
    torch.manual_seed(3)
    with torch.no_grad():
        norm = model.model.layers[1].input_layernorm.weight
        norm *= 1.004
        with pytest.raises(AdapterMismatchError, match=r"blk.1.attn_norm.weight is off by 0.4%, where F32"):
            check_same_weights(model, file)
        norm /= 1.004
        check_same_weights(model, file)
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight += share * weight.std() * torch.randn_like(weight)
        with pytest.raises(AdapterMismatchError, match=r"blk.0.attn_q.weight is off by"):
            check_same_weights(model, file)


def in_form(folder: Path, out: Path, form: str | None) -> Path:
    """The model of a folder as a GGUF file, in float32 or quantised."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = tiny_gguf(model, out.with_suffix(".f32"), ModelShape.from_config(model.config))
    if form is None:
        return whole.rename(out)
    return quantize(whole, out, form)


def trained(folder: Path, method: Any, out: Path) -> Path:
    torch.set_num_threads(1)
    settings = TrainSettings(method, rank=4, tokens=2, epochs=1, batch=5, rate=2e-2)
    training = Training(Base(str(folder)), tiny_examples(), out, settings)
    write_adapter(training, training.run(), card={"prompt": prompt_fingerprint()}, licence="CC0")
    return out


def test_dora_adapters_of_other_trainers_cannot_be_written_as_gguf() -> None:
    assert "column lengths" in (not_plain_lora({"peft_type": "LORA", "use_dora": True}) or "")
    assert not_plain_lora({"peft_type": "LORA"}) is None


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("ia3", "not with LoRA"),
        ("prefix", "not with LoRA"),
        ("prompt", "not with LoRA"),
        ("full", "whole model"),
    ],
)
def test_methods_that_gguf_cannot_represent_are_refused(tmp_path: Path, method: str, why: str) -> None:
    folder = tiny_model(tmp_path / "model")
    out = trained(folder, method, tmp_path / "out")
    with pytest.raises(UnsupportedError, match=why):
        export_adapter(out, "gguf")
    if method in ("prefix", "prompt"):
        with pytest.raises(UnsupportedError, match="add tokens to the prompt"):
            export_adapter(out, "merged", out=tmp_path / "merged")
    elif method != "full":
        whole = AutoModelForCausalLM.from_pretrained(export_adapter(out, "merged", out=tmp_path / "merged"))
        with torch.no_grad():
            expected = load_adapter(Base(str(folder)), out)(torch.tensor([TOKENS])).logits
            torch.testing.assert_close(whole(torch.tensor([TOKENS])).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_the_command_exports_and_both_readers_agree(tmp_path: Path) -> None:
    """The base is a GGUF file."""
    folder = tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    base = tiny_gguf(model, tmp_path / "base.gguf", ModelShape.from_config(model.config))
    out = trained(base, "lora", tmp_path / "out")
    file = out / "adapter.gguf"
    assert Shell(tmp_path).json("adapt", "export", out) == {"out": str(file)}
    assert readers_agree(out, export_adapter(out, "gguf", dtype="f32", out=tmp_path / "f32.gguf"), tiny_examples(6))
    assert serving_adapter(out, str(base), prompt_fingerprint()) == str(file)
    with pytest.raises(AdapterMismatchError, match="different weights"):
        serving_adapter(file, "bundled", prompt_fingerprint())
    check_adapter(file, base, prompt_fingerprint())
    with pytest.raises(AdapterMismatchError, match="a different prompt"):
        check_adapter(file, base, "another")
    with pytest.raises(AdapterMismatchError, match="different weights"):
        check_adapter(file, folder)
    export_adapter(file, "peft", base=str(base), out=tmp_path / "back")
    assert read_record(tmp_path / "back").base["sha256"] == read_record(out).base["sha256"]
    assert readers_agree(tmp_path / "back", file, tiny_examples(2))
    with pytest.raises(AdapterMismatchError, match="trained on different weights"):
        export_adapter(out, "merged", base=str(folder), out=tmp_path / "merged")
    assert json.loads((out / "ragfm-adapter.json").read_bytes())["licence"] == "CC0"


@pytest.mark.parametrize("alone", ["file", "folder"])
def test_a_gguf_adapter_is_trained_further_and_merged_and_keeps_its_licence(tmp_path: Path, alone: str) -> None:
    folder = tiny_model(tmp_path / "model")
    base = tiny_gguf(
        AutoModelForCausalLM.from_pretrained(folder),
        tmp_path / "base.gguf",
        ModelShape.from_config(Base(str(folder)).model.config),
    )
    out = trained(base, "lora", tmp_path / "out")
    whole = export_adapter(out, "merged", out=tmp_path / "expected")
    written = export_adapter(out, "gguf", dtype="f32")
    (out / WEIGHTS).unlink()
    start = written if alone == "file" else out
    onward = Training(
        Base(str(base)),
        tiny_examples(),
        tmp_path / "more",
        TrainSettings(epochs=0.2, batch=5, start=str(start)),
    )
    assert write_adapter(onward, onward.run(), card={}).licence == "CC0"
    assert onward.configuration["rank"] == 4
    export_adapter(start, "peft", out=tmp_path / "back")
    assert read_record(tmp_path / "back").licence == "CC0"
    again = export_adapter(start, "merged", out=tmp_path / "merged")
    one, other = (load_file(path / "model.safetensors") for path in (whole, again))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    with pytest.raises(UnsupportedError, match="is already a GGUF adapter"):
        export_adapter(start, "gguf")
    with pytest.raises(DataError, match="needs the base and an output path"):
        export_adapter(shutil.copy(written, tmp_path / "elsewhere.gguf"), "merged", out=tmp_path / "no")
