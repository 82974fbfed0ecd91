"""Fine-tuning methods by name, implemented by PEFT.

lora    adds a low-rank product B A to each weight matrix W (Hu et al. 2022)
qlora   LoRA over a base in 4 bits (Dettmers et al. 2023)
prefix  trained keys and values before those of the prompt, in each layer (Li & Liang 2021)
prompt  trained embeddings before those of the prompt (Lester et al. 2021)
ia3     scales keys, values and the hidden layer of the feed-forward by trained vectors (Liu et al. 2022)
full    trains all weights
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ragfm.core.errors import AdapterMismatchError, ConfigError, needs_extra
from ragfm.models.adapters import METHODS, Method, read_record
from ragfm.models.model_lookup import silence_kernel_warning
from ragfm.training.train_settings import TrainSettings

LEARNING_RATES: dict[Method, float] = {
    "lora": 2e-4,
    "qlora": 2e-4,
    "prefix": 1e-2,
    "prompt": 1e-2,
    "ia3": 5e-3,
    "full": 2e-5,
}
"""Default peak learning rates."""
_IA3_ATTENTION_LAYERS = ("k_proj", "v_proj", "qkv_proj", "key", "value")
_IA3_FEEDFORWARD_LAYERS = ("down_proj", "fc2")


def apply_method(model: Any, settings: TrainSettings, name: str, start: str | None = None) -> Any:
    """The model prepared for a method: trainable parameters in float32, everything else frozen.

    `name` is the name of the base, which PEFT stores; `start` is a PEFT folder with an adapter to continue from. Raises
    ConfigError if the adapter was trained by a different method or the method does not fit the model.
    """
    if settings.method == "full":
        if start:
            raise ConfigError("Full fine-tuning cannot start from an adapter.", "Use its folder as the base.")
        model.requires_grad_(True)
        return model
    peft = import_peft()
    if settings.method == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():  # else bitsandbytes rounds the weights again at the first validation on a CPU
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if start:
        method = read_record(start).method
        if method != settings.method:
            raise ConfigError(
                f"The adapter to continue from was trained with {method}, not {settings.method}.",
                f"Use --method {method}." if method in METHODS else "Start from another adapter.",
            )
        config = peft.PeftConfig.from_pretrained(start)
        with refuse_other_adapters(start, name):
            if config.is_prompt_learning:  # PEFT's `from_pretrained` loads these for inference only
                config.inference_mode = False
                config.prefix_projection = False  # the stored weights are projected already
                model = peft.get_peft_model(model, config)
                peft.set_peft_model_state_dict(model, peft.load_peft_weights(start))
            else:
                model = peft.PeftModel.from_pretrained(model, start, is_trainable=True)
    else:
        common = {"task_type": "CAUSAL_LM", "inference_mode": False, "base_model_name_or_path": name}
        if settings.method in ("lora", "qlora"):
            config = peft.LoraConfig(
                r=settings.rank,
                lora_alpha=2 * settings.rank,
                lora_dropout=settings.dropout,
                target_modules="all-linear",
                **common,
            )
        elif settings.method == "prefix":
            config = peft.PrefixTuningConfig(num_virtual_tokens=settings.tokens, **common)
        elif settings.method == "prompt":
            config = peft.PromptTuningConfig(num_virtual_tokens=settings.tokens, prompt_tuning_init="RANDOM", **common)
        else:
            linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
            names = {name.rpartition(".")[2] for name in linear}
            feedforward = sorted(names & set(_IA3_FEEDFORWARD_LAYERS))
            attention = sorted(names & set(_IA3_ATTENTION_LAYERS))
            if not attention or not feedforward:
                raise ConfigError(f"ia3 does not know the layers of this model: {sorted(names)}.", "Use --method lora.")
            targets = [*attention, *feedforward]
            config = peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, **common)
        model = peft.get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


@contextmanager
def refuse_other_adapters(adapter: str | Path, base: str) -> Iterator[None]:
    """Raise AdapterMismatchError where PEFT cannot load an adapter, one of another base for example."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise AdapterMismatchError(
            f"'{adapter}' is not an adapter for '{base}': {error}.", "Specify the model that it was trained on."
        ) from error


def import_peft() -> Any:
    """The peft module. Raises MissingExtraError."""
    silence_kernel_warning()
    # PEFT reads attributes of transformers by deprecated names; users cannot do anything about it.
    warnings.filterwarnings("ignore", "`(is_gradient_checkpointing|past_key_values)` is deprecated", FutureWarning)
    with needs_extra("Training", "train"):
        import peft
    return peft


def cast_frozen_to_bfloat16(model: torch.nn.Module) -> None:
    """Convert frozen float32 linear layers to bfloat16, which autocast would otherwise do at each step.

    The output embedding stays, since it may be tied to the input embedding, and so do quantised layers.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        if not module.weight.requires_grad and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.bfloat16()
