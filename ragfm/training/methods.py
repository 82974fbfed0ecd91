"""Ways to adapt a model, by name; PEFT does the work.

lora    W + B A, of low rank (Hu et al. 2022)
dora    the same for the direction of W's columns, and their length apart (Liu et al. 2024)
qlora   lora over a base of 4 bits (Dettmers et al. 2023)
prefix  keys and values before the prompt's, in every layer (Li & Liang 2021)
prompt  embeddings before the prompt's (Lester et al. 2021)
ia3     keys, values and the feed-forward's inside scaled by a vector (Liu et al. 2022)
full    all weights
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from ragfm.core.errors import ConfigError, MissingExtraError
from ragfm.models.adapters import Method, read_record
from ragfm.models.model_lookup import silence_kernel_warning

RATES: dict[Method, float] = {
    "lora": 2e-4, "dora": 2e-4, "qlora": 2e-4, "prefix": 1e-2, "prompt": 1e-2, "ia3": 5e-3, "full": 2e-5,
}  # fmt: skip
"""Learning rates by default."""
_SCALED = ("k_proj", "v_proj", "qkv_proj", "key", "value")
_SCALED_INSIDE = ("down_proj", "fc2")


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """A method and its size: `rank` is that of lora, dora and qlora, `alpha` their scale times the rank.

    `tokens` is how many virtual tokens prefix and prompt put before the prompt.
    """

    method: Method = "lora"
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    tokens: int = 20


def adapted(model: Any, settings: MethodSettings, name: str, start: str | None = None) -> Any:
    """The model with what is to be learned in float32, and all else frozen; with `start`, from where an adapter is."""
    if settings.method == "full":
        if start:
            raise ConfigError("Whole weights don't start from an adapter.", "Name its folder as the base.")
        model.requires_grad_(True)
        return model
    peft = load_peft()
    if settings.method == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():  # else the first validation on a processor would round the weights anew
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if start:
        known = read_record(start).method
        if known != settings.method:
            raise ConfigError(
                f"The adapter to go on from was trained by {known}, not {settings.method}.", f"Use --method {known}."
            )
        model = peft.PeftModel.from_pretrained(model, start, is_trainable=True)
    else:
        config = _config(peft, model, settings)
        config.base_model_name_or_path = name
        model = peft.get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def load_peft() -> Any:
    """The library. Raises MissingExtraError."""
    silence_kernel_warning()
    # PEFT asks transformers by old names; nobody who trains or exports can act on it.
    warnings.filterwarnings("ignore", "`(is_gradient_checkpointing|past_key_values)` is deprecated", FutureWarning)
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("Training needs peft.", "Run `pip install 'ragfm[train]'`.") from error
    return peft


def halved(model: torch.nn.Module) -> None:
    """Keep frozen matrices in bfloat16, which autocast would else make of them at every step.

    Not the output embedding, which may be the input's too, nor what is quantised, whose numbers are packed.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        if not module.weight.requires_grad and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.bfloat16()


def _config(peft: Any, model: Any, settings: MethodSettings) -> Any:
    common = {"task_type": "CAUSAL_LM", "inference_mode": False}
    if settings.method in ("lora", "dora", "qlora"):
        return peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha or 2 * settings.rank,
            lora_dropout=settings.dropout,
            target_modules="all-linear",
            use_dora=settings.method == "dora",
            **common,
        )
    if settings.method == "prefix":
        return peft.PrefixTuningConfig(num_virtual_tokens=settings.tokens, **common)
    if settings.method == "prompt":
        return peft.PromptTuningConfig(num_virtual_tokens=settings.tokens, prompt_tuning_init="RANDOM", **common)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = sorted(names & set(_SCALED_INSIDE))
    scaled = sorted(names & set(_SCALED))
    if not scaled or not inside:
        raise ConfigError(f"ia3 does not know the layers of this model: {sorted(names)}.", "Use lora.")
    return peft.IA3Config(target_modules=[*scaled, *inside], feedforward_modules=inside, **common)
