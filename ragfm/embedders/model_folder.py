"""Read the configuration of a sentence-transformers folder without importing the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LEGACY_POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_TRANSFORMER_DEFAULTS = {
    "transformer_task": "feature-extraction",
    "unpad_inputs": None,
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
    "model_args": {"add_pooling_layer": False},  # the layer that BERT has for whole texts, which is not used here
}
_OTHER_TRANSFORMER_KEYS = {
    "max_seq_length",
    "do_lower_case",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
}
_TEXT_OUTPUT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function"}
_IDENTITY = "torch.nn.modules.linear.Identity"
_TOKENIZERS = {"bert": "BertTokenizer", "mpnet": "MPNetTokenizer"}
"""The networks that `ragfm.embedders.bert` runs, and their tokenizers, which are alike but for the special tokens."""
_DEFAULTS = {
    "hidden_act": "gelu",
    "relative_attention_num_buckets": 32,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}


@dataclass(frozen=True, slots=True)
class BertFolder:
    """A BERT or MPNet model with mean or CLS pooling: its files, and the processing before and after the network.

    `window` is the maximum number of tokens, including special tokens and the prompt. `pooling` is the pooling part of
    the embedding contract, in the format of sentence-transformers 6. `lowercase` means that the library lowercases
    texts before the tokenizer. `dense` is the folder of a linear layer after the pooling.
    """

    path: Path
    window: int
    pooling: str
    cls: bool
    dim: int
    heads: int
    epsilon: float
    lowercase: bool
    prompts: Mapping[str, str]
    dense: Path | None = None


def read_bert_folder(path: Path) -> BertFolder | None:
    """Read a folder. None if the model is not such a one, or has any setting that is not known to be harmless."""
    try:
        modules = [(module["type"], module["path"]) for module in _json(path / "modules.json")]
        # `sentence_transformers.models.Transformer` and newer paths of the same class are both "Transformer".
        kinds = [name.rsplit(".", 1)[-1] if name.startswith("sentence_transformers.") else "" for name, _ in modules]
        has_dense, normalizes = "Dense" in kinds, "Normalize" in kinds
        if kinds != ["Transformer", "Pooling", *(["Dense"] * has_dense), *(["Normalize"] * normalizes)]:
            return None
        folder = path / modules[0][1]
        config = _json(folder / "config.json")
        own = _json(folder / "sentence_bert_config.json")
        pooling = _json(path / modules[1][1] / "config.json")
        modes = pooling.get("pooling_mode", [mode for key, mode in _LEGACY_POOLING.items() if pooling.get(key)])
        modes = [modes] if isinstance(modes, str) else list(modes)
        if len(modes) != 1 or modes[0] not in _LEGACY_POOLING.values() or not pooling.get("include_prompt", True):
            return None
        other_modes = [key for key in pooling if key.startswith("pooling_mode_") and key not in _LEGACY_POOLING]
        if any(pooling[key] for key in other_modes):
            return None
        if any(config.get(key) for key in ("quantization_config", "add_cross_attention", "auto_map")):
            return None
        kind = config.get("model_type", "bert")
        if kind not in _TOKENIZERS or any(config.get(key, value) != value for key, value in _DEFAULTS.items()):
            return None
        positions = int(config["max_position_embeddings"]) - 2 * (kind == "mpnet")  # its first token has position 2
        window = _window(folder, own, positions)
        if window is None or not _is_plain_tokenizer(folder, _TOKENIZERS[kind]):
            return None
        dim = int(config["hidden_size"])
        layers: list[dict[str, Any]] = [
            {"embedding_dimension": dim, "pooling_mode": str(modes[0]), "include_prompt": True}
        ]
        names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        dense = None
        if has_dense:
            dense = path / modules[2][1]
            layer = names | _json(dense / "config.json")
            is_linear = layer.keys() == _DENSE_KEYS | names.keys() and layer["activation_function"] == _IDENTITY
            if not is_linear or layer["in_features"] != dim or not (dense / "model.safetensors").is_file():
                return None
            dim = int(layer["out_features"])
            layers.append(layer)
        if normalizes:
            layers.append(names)
        options_path = path / "config_sentence_transformers.json"
        options = _json(options_path) if options_path.exists() else {}
        return BertFolder(
            path=folder,
            window=window,
            pooling=json.dumps(layers, sort_keys=True),
            cls=modes[0] == "cls",
            dim=dim,
            heads=int(config["num_attention_heads"]),
            epsilon=float(config["layer_norm_eps"]),
            lowercase=bool(own.get("do_lower_case")),
            prompts={name: text or "" for name, text in options.get("prompts", {}).items()},
            dense=dense,
        )
    except (OSError, ValueError, LookupError):
        return None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _window(folder: Path, own: Mapping[str, Any], positions: int) -> int | None:
    """Maximum tokens as sentence-transformers computes them: its own setting, else the tokenizer's or the positions.

    None if the library's configuration has a setting that is not known here.
    """
    if (
        own.keys() - _OTHER_TRANSFORMER_KEYS - _TRANSFORMER_DEFAULTS.keys()
        or any(own.get(key, value) != value for key, value in _TRANSFORMER_DEFAULTS.items())
        or own.get("modality_config", _TEXT_OUTPUT) != _TEXT_OUTPUT
        or own.get("module_output_name", "token_embeddings") != "token_embeddings"
        or own.get("processing_kwargs")
    ):
        return None
    window = own.get("max_seq_length")
    if window is None:
        window = min(int(_json(folder / "tokenizer_config.json").get("model_max_length", positions)), positions)
    return int(window) if window <= positions else None


def _is_plain_tokenizer(folder: Path, kind: str) -> bool:
    """Whether transformers, which rebuilds such a tokenizer from its configuration, gets the same as the saved one."""
    saved = _json(folder / "tokenizer.json")
    config = _json(folder / "tokenizer_config.json")
    normalizer = saved["normalizer"]
    return (
        str(config.get("tokenizer_class", kind)).removesuffix("Fast") == kind
        and saved["model"].get("type", "WordPiece") == "WordPiece"
        and normalizer["type"] == "BertNormalizer"
        and normalizer["lowercase"] == config.get("do_lower_case", True)
        and normalizer["strip_accents"] == config.get("strip_accents")
        and normalizer["handle_chinese_chars"] == config.get("tokenize_chinese_chars", True)
        and saved["pre_tokenizer"]["type"] == "BertPreTokenizer"
    )
