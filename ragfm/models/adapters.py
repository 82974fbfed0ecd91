"""Adapters: what a reader was taught, and with which weights and which prompt it may be used.

    FOLDER/  ragfm-adapter.json         this record, written last: a folder without it is no adapter
             adapter_model.safetensors  what was learned, as PEFT writes it, and its adapter_config.json
             adapter.gguf               the same for llama.cpp, where it was exported

A GGUF adapter carries what is checked in itself, so that the file alone is enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ragfm.core.errors import AdapterMismatchError, DamagedModelError, ModelNotFoundError
from ragfm.core.registry import plugin_and_model
from ragfm.models.model_lookup import find_model, weights_sha256

__all__ = [
    "CHECKPOINT",
    "GGUF",
    "METHODS",
    "NO_ADAPTER",
    "RECORD",
    "WEIGHTS",
    "AdapterRecord",
    "check_adapter",
    "learned_sha256",
    "read_record",
    "serving_adapter",
    "shipped_adapter",
]

RECORD = "ragfm-adapter.json"
WEIGHTS = "adapter_model.safetensors"
GGUF = "adapter.gguf"
CHECKPOINT = "checkpoint.safetensors"
"""Where a training stands that has not ended."""
SHIPPED = Path(__file__).parent / "shipped" / "smollm2-135m-squad"
"""The adapter for the bundled reader; docs/adaptation.md says how it was made."""
NO_ADAPTER = "none"
GGUF_BASE, GGUF_PROMPT = "ragfm.base_sha256", "ragfm.prompt"
FORMAT = 1
Method: TypeAlias = Literal["lora", "dora", "qlora", "prefix", "prompt", "ia3", "full"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """What an adapter is. `base` has the model's `name` and the `sha256` of its weights; `prompt` is a fingerprint.

    `weights` is the sha256 of what was learned, `data` the card of the examples, `numbers` what training measured.
    """

    method: str
    base: Mapping[str, str]
    prompt: str
    weights: str
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    ragfm: str = ""

    def to_json(self) -> bytes:
        """The content of the record's file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False).encode() + b"\n"


def read_record(folder: str | Path) -> AdapterRecord:
    """The record of an adapter's folder. Raises ModelNotFoundError where it is none, DamagedModelError."""
    path = Path(folder).expanduser() / RECORD
    if not path.is_file():
        if (path.parent / "adapter_config.json").is_file() and not (path.parent / CHECKPOINT).is_file():
            raise ModelNotFoundError(
                f"{path.parent} is an adapter of PEFT's that ragfm has not trained: without {RECORD} nothing says for "
                "which weights and which prompt it is.",
                "Train one with `ragfm adapt train`, or merge it with PEFT and name that folder as the reader.",
            )
        why = "training there has not ended" if any(path.parent.glob("*.safetensors")) else f"it has no {RECORD}"
        raise ModelNotFoundError(f"{path.parent} is no adapter: {why}.", "`ragfm adapt train` makes one.")
    try:
        values = json.loads(path.read_bytes())
        if values.pop("format") != FORMAT:
            raise ValueError("it is of another version of ragfm")
        return AdapterRecord(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedModelError(f"{path} can't be read: {error}.", "Train or copy the adapter again.") from error


def check_adapter(adapter: str | Path, base: str | Path, prompt: str | None = None) -> None:
    """Raise AdapterMismatchError where an adapter was trained on other weights than `base`, or for another prompt.

    `adapter` is a folder or a GGUF file; a GGUF file that doesn't say what it is for passes. `prompt` is a
    fingerprint, see `ragfm.generation.prompt`. Raises DamagedModelError where the weights are not those that were
    trained.
    """
    path, base = Path(adapter).expanduser(), Path(base).expanduser()
    if path.is_dir():
        record = read_record(path)
        wanted, asked = record.base["sha256"], record.prompt
        if learned_sha256(path) != record.weights:
            raise DamagedModelError(f"The weights in {path} are not what was trained.", "Train or copy them again.")
    else:
        wanted, asked = _gguf_says(path)
    found = weights_sha256(base) if wanted else wanted
    if found != wanted:
        raise AdapterMismatchError(
            f"The adapter {path} was trained on other weights than {base}: on sha256 {wanted}, not {found}.",
            "Name the model that it was trained on, or train one on this model. For a GGUF file of the same model: "
            "`ragfm adapt export ADAPTER --base FILE.gguf`.",
        )
    if asked and prompt and asked != prompt:
        raise AdapterMismatchError(
            f"The adapter {path} was trained for another prompt than is asked here.",
            "Ask by the strategy and mode that it was trained for, train it anew with `ragfm adapt data` and `ragfm "
            "adapt train`, or go without: --adapter none.",
        )


def shipped_adapter(reader: str, prompt: str) -> str | None:
    """The file of the adapter that ragfm brings for a reader of that name and a prompt; None where it brings none."""
    path = SHIPPED / GGUF
    known = reader in ("bundled", "llama-cpp", "llama-cpp:bundled") and path.is_file()
    return str(path) if known and read_record(SHIPPED).prompt == prompt else None


def serving_adapter(adapter: str | Path | None, reader: str, prompt: str) -> str | None:
    """What a reader of that name takes, checked by `check_adapter`; None is the one that ragfm brings, `none` is none.

    Of an adapter's folder that is its GGUF form for llama.cpp, and the folder itself for transformers.
    """
    if adapter is None:
        return shipped_adapter(reader, prompt)
    if str(adapter) == NO_ADAPTER:
        return None
    path = Path(adapter).expanduser()
    plugin, model = plugin_and_model("readers", reader)
    if path.is_dir():
        if read_record(path).method == "full":
            raise AdapterMismatchError(f"{path} has whole weights, and is no adapter.",
                                       f"Name it as the reader: `--reader transformers:{path}`.")  # fmt: skip
        if plugin == "llama-cpp" and not (path / GGUF).is_file():
            raise ModelNotFoundError(f"{path} has no {GGUF}.", f"Run `ragfm adapt export {path} --base {model}`.")
        path = path / GGUF if plugin == "llama-cpp" else path
    if plugin in ("llama-cpp", "transformers") and model:
        check_adapter(path, find_model(model, "reader"), prompt)
    return str(path)


def _gguf_says(path: Path) -> tuple[str, str]:
    """The base's hash and the prompt's fingerprint that stand in a GGUF adapter; empty where they don't."""
    from gguf import GGUFReader

    if not path.is_file():
        raise ModelNotFoundError(f"There is no adapter {path}.", "Check the path.")
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise DamagedModelError(f"{path} is not a GGUF file: {error}.", "Export the adapter again.") from error
    said = [reader.get_field(key) for key in (GGUF_BASE, GGUF_PROMPT)]
    base, prompt = ("" if one is None else str(one.contents()) for one in said)
    return base, prompt


def learned_sha256(folder: Path) -> str:
    """The sha256 of what was learned: of the adapter's weights, or of all weights. Raises DamagedModelError."""
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("model*.safetensors"))
    if not files:
        raise DamagedModelError(f"{folder} lacks {WEIGHTS}.", "Train or copy the adapter again.")
    digest = sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
