"""What a sentence-transformers folder says of its model, read without importing the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BertFolder", "read_bert_folder"]

_LEGACY_POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_TRANSFORMER_DEFAULTS = {"transformer_task": "feature-extraction", "unpad_inputs": None,
                         "query_length": None, "document_length": None, "query_expansion": None}  # fmt: skip
_OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
_BERT = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


@dataclass(frozen=True, slots=True)
class BertFolder:
    """A BERT with mean or CLS pooling: where its files are and what is done before and after the network.

    `pooling` is the part of the embedding contract that says so, in the words of sentence-transformers 6; `window` is
    in tokens, special tokens and prompt included; `lowercase` means that the library lowers letters beforehand.
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


def read_bert_folder(path: Path) -> BertFolder | None:
    """None where the model is of another kind, or anything is set that is not known here to be without effect."""
    try:
        return _read(path)
    except (OSError, ValueError, LookupError):
        return None


def _read(path: Path) -> BertFolder | None:
    modules = [(_kind(module["type"]), module["path"]) for module in _json(path / "modules.json")]
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return None
    folder = path / modules[0][1]
    config, mode = _json(folder / "config.json"), _pooling(path / modules[1][1])
    window = _window(folder, config)
    if mode is None or window is None or not _is_plain(config) or not _tokenizer_is_plain(folder):
        return None
    dim = int(config["hidden_size"])
    layers = [{"embedding_dimension": dim, "pooling_mode": mode, "include_prompt": True}]
    if "Normalize" in kinds:
        layers.append({"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"})
    options = _json(path / "config_sentence_transformers.json", {})
    return BertFolder(
        path=folder,
        window=window,
        pooling=json.dumps(layers, sort_keys=True),
        cls=mode == "cls",
        dim=dim,
        heads=int(config["num_attention_heads"]),
        epsilon=float(config["layer_norm_eps"]),
        lowercase=bool(_json(folder / "sentence_bert_config.json").get("do_lower_case")),
        prompts={name: text or "" for name, text in options.get("prompts", {}).items()},
    )


def _json(path: Path, absent: Any = None) -> Any:
    if absent is not None and not path.exists():
        return absent
    return json.loads(path.read_text(encoding="utf-8"))


def _kind(name: str) -> str:
    library, *_, kind = name.split(".")
    return kind if library == "sentence_transformers" else name


def _is_plain(config: Mapping[str, Any]) -> bool:
    return all(config.get(key, value) == value for key, value in _BERT.items()) and not any(
        config.get(key) for key in ("quantization_config", "add_cross_attention", "auto_map")
    )


def _pooling(folder: Path) -> str | None:
    config = _json(folder / "config.json")
    modes = config.get("pooling_mode", [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)])
    modes = [modes] if isinstance(modes, str) else list(modes)
    others = any(
        value for key, value in config.items() if key.startswith("pooling_mode_") and key not in _LEGACY_POOLING
    )
    known = len(modes) == 1 and modes[0] in _LEGACY_POOLING.values()
    return modes[0] if known and not others and config.get("include_prompt", True) else None


def _window(folder: Path, config: Mapping[str, Any]) -> int | None:
    """What sentence-transformers takes: its own setting, else the least of the tokenizer's and the positions."""
    own = _json(folder / "sentence_bert_config.json")
    positions = int(config["max_position_embeddings"])
    known = {"max_seq_length", "do_lower_case", "modality_config", "module_output_name", "processing_kwargs"}
    text = own.get("modality_config", {"text": _OUTPUT})
    if (
        own.keys() - known - _TRANSFORMER_DEFAULTS.keys()
        or any(own.get(key, value) != value for key, value in _TRANSFORMER_DEFAULTS.items())
        or text != {"text": _OUTPUT}
        or own.get("module_output_name", "token_embeddings") != "token_embeddings"
        or own.get("processing_kwargs")
    ):
        return None
    window = own.get("max_seq_length")
    if window is None:
        window = min(int(_json(folder / "tokenizer_config.json").get("model_max_length", positions)), positions)
    return int(window) if window <= positions else None


def _tokenizer_is_plain(folder: Path) -> bool:
    """Whether transformers, which makes a BERT tokenizer anew, arrives at the one that is written down."""
    written = _json(folder / "tokenizer.json")
    said = _json(folder / "tokenizer_config.json")
    normalizer = written["normalizer"]
    return (
        str(said.get("tokenizer_class", "BertTokenizer")).removesuffix("Fast") == "BertTokenizer"
        and written["model"].get("type", "WordPiece") == "WordPiece"
        and normalizer["type"] == "BertNormalizer"
        and normalizer["lowercase"] == said.get("do_lower_case", True)
        and normalizer["strip_accents"] == said.get("strip_accents")
        and normalizer["handle_chinese_chars"] == said.get("tokenize_chinese_chars", True)
        and written["pre_tokenizer"]["type"] == "BertPreTokenizer"
    )
