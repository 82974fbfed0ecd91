"""Adapter folders: their record, and the checks that an adapter fits the model's weights and the prompt.

    FOLDER/  ragfm-adapter.json         the record, written last: without it, the folder is not an adapter
             adapter_model.safetensors  the trained weights in PEFT's format, with adapter_config.json
             adapter.gguf               the same for llama.cpp, if it was exported

A GGUF adapter also carries the values that are checked, so the file can be used alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, get_args

from ragfm.core.errors import AdapterMismatchError, DamagedModelError, ModelNotFoundError
from ragfm.core.output_folder import OUTPUT
from ragfm.core.registry import plugin_and_model
from ragfm.models.gguf_header import read_header
from ragfm.models.model_lookup import files_sha256, find_model, weights_sha256

_log = logging.getLogger(__name__)

RECORD = "ragfm-adapter.json"
PEFT_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
GGUF = "adapter.gguf"
CHECKPOINT = "checkpoint.safetensors"
"""State of a training run that has not finished."""
BEST = "best.safetensors"
"""Best weights so far of a training run that has not finished."""
SHIPPED = Path(__file__).parent / "shipped" / "smollm2-135m-squad"
"""The adapter for the bundled reader. docs/adaptation.md describes its training."""
NO_ADAPTER, BUNDLED_ADAPTER = "none", "bundled"
GGUF_BASE, GGUF_PROMPT = "ragfm.base_sha256", "ragfm.prompt"
"""Metadata keys of a GGUF adapter: SHA-256 of the base model's weights, and fingerprint of the prompt."""
FORMAT = 1
_METHOD_OF_PEFT_TYPE = {"prefix_tuning": "prefix", "prompt_tuning": "prompt"}
Method: TypeAlias = Literal["lora", "qlora", "prefix", "prompt", "ia3", "full"]
METHODS: tuple[Method, ...] = get_args(Method)
NOT_IN_GGUF = ("dora", "ia3", "prefix", "prompt")
"""Methods whose adapters llama.cpp cannot run."""
MERGES = ("lora", "qlora", "dora", "ia3")
"""Methods whose adapters can be merged into the weights of their base."""


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """The content of `ragfm-adapter.json`.

    `base` has the `name` of the base model and the `sha256` of its weights. `prompt` is a fingerprint, see
    `ragfm.generation.prompt`. `weights` is the SHA-256 of the trained weights. `data` describes the training examples,
    `numbers` has the measurements of the training run.
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
        """The record as the bytes of its file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False).encode() + b"\n"


def read_record(folder: str | Path) -> AdapterRecord:
    """Read the record of an adapter folder. Raises ModelNotFoundError or DamagedModelError.

    An adapter that PEFT or a trainer that uses it wrote (Unsloth, Axolotl, TRL) gets a record from its configuration,
    without the hash of its base and without a prompt, which are unknown.
    """
    path = Path(folder).expanduser() / RECORD
    if not path.is_file():
        marks = (CHECKPOINT, OUTPUT)  # of a folder in which ragfm began to train or to write an adapter
        if is_peft_folder(path.parent) and not any((path.parent / mark).exists() for mark in marks):
            return _peft_record(path.parent)
        unfinished = any(path.parent.glob("*.safetensors"))
        reason = "its training has not finished" if unfinished else f"it has no {RECORD}"
        raise ModelNotFoundError(
            f"'{path.parent}' is not an adapter folder: {reason}.", "Train an adapter with `ragfm adapt train`."
        )
    try:
        values = json.loads(path.read_bytes())
        if values.pop("format") != FORMAT:
            raise ValueError("it was written by another version of ragfm")
        return AdapterRecord(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedModelError(f"Cannot read '{path}': {error}.", "Train or copy the adapter again.") from error


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder has the files of a PEFT adapter with safetensors."""
    return (folder / PEFT_CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _peft_record(folder: Path) -> AdapterRecord:
    """The record of a PEFT adapter, from its configuration. Raises DamagedModelError."""
    from safetensors import SafetensorError, safe_open

    config = _peft_config(folder)
    try:
        with safe_open(folder / WEIGHTS, "numpy"):  # a copy may be incomplete
            pass
    except SafetensorError as error:
        raise DamagedModelError(
            f"Cannot read '{folder / WEIGHTS}': {error}.", "Train or copy the adapter again."
        ) from error
    kind, base = str(config.get("peft_type")).lower(), str(config.get("base_model_name_or_path") or "")
    method = "dora" if config.get("use_dora") else _METHOD_OF_PEFT_TYPE.get(kind, kind)
    return AdapterRecord(method, {"name": base, "sha256": ""}, "", trained_weights_sha256(folder))


def _peft_config(folder: Path) -> dict[str, Any]:
    path = folder / PEFT_CONFIG
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DamagedModelError(f"Cannot read '{path}': {error}.", "Train or copy the adapter again.") from error


def check_adapter(adapter: str | Path, base: str | Path | None, prompt: str | None = None) -> None:
    """Raise AdapterMismatchError if an adapter was trained on different weights than `base`, or for a different prompt.

    `adapter` is a folder or a GGUF file; one that records neither its base nor its prompt passes. Without a `base`,
    only the prompt is compared. `prompt` is a fingerprint, see `ragfm.generation.prompt`. Raises DamagedModelError if
    the weights in a folder are not those of its record.
    """
    path = Path(adapter).expanduser()
    if path.is_dir():
        record = read_record(path)
        trained_base, trained_prompt = record.base["sha256"], record.prompt
        if trained_weights_sha256(path) != record.weights:
            raise DamagedModelError(
                f"The weights in '{path}' do not match its {RECORD}.", "Train or copy the adapter again."
            )
    else:
        if not path.is_file():
            raise ModelNotFoundError(f"The adapter '{path}' does not exist.", "Check the path.")
        metadata = read_header(path)
        trained_base, trained_prompt = (str(metadata.get(key, "")) for key in (GGUF_BASE, GGUF_PROMPT))

    actual_base = weights_sha256(Path(base).expanduser()) if trained_base and base else trained_base
    if actual_base != trained_base:
        raise AdapterMismatchError(
            f"The adapter '{path}' was trained on different weights than '{base}': on sha256 {trained_base}, not "
            f"{actual_base}.",
            "Specify the model that it was trained on, or train an adapter on this model. For a GGUF file of the same "
            "model: `ragfm adapt export ADAPTER --base FILE.gguf`.",
        )
    if trained_prompt and prompt and trained_prompt != prompt:
        raise AdapterMismatchError(
            f"The adapter '{path}' was trained for a different prompt.",
            "Use the strategy and mode that it was trained for, train it again with `ragfm adapt data` and `ragfm "
            "adapt train`, or use no adapter: --adapter none.",
        )


def shipped_adapter(reader: str, prompt: str) -> str | None:
    """The path of ragfm's own adapter for a reader and a prompt fingerprint, or None if there is none."""
    path = SHIPPED / GGUF
    if reader not in ("bundled", "llama-cpp", "llama-cpp:bundled") or not path.is_file():
        return None
    return str(path) if read_record(SHIPPED).prompt == prompt else None


def serving_adapter(adapter: str | Path | None, reader: str, prompt: str) -> str | None:
    """The adapter path to pass to a reader, checked by `check_adapter`.

    `adapter` is a folder, a GGUF file, `none`, or None for the adapter that ships with ragfm. For a folder, this is its
    GGUF file for llama.cpp, and the folder itself for transformers. For a server it may also be a name, which passes.
    """
    if adapter is None:
        return shipped_adapter(reader, prompt)
    if str(adapter) == NO_ADAPTER:
        return None
    path = Path(adapter).expanduser()
    plugin, model = plugin_and_model("readers", reader)
    if path.is_dir():
        record = read_record(path)
        method = record.method
        if method == "full":
            raise AdapterMismatchError(
                f"'{path}' has the weights of a whole model, not an adapter.",
                f"Use it as the reader: `--reader transformers:{path}`.",
            )
        if plugin == "llama-cpp" and method in NOT_IN_GGUF:
            merge = f", or merge it: `ragfm adapt export {path} --to merged --out FOLDER`"
            raise AdapterMismatchError(
                f"'{path}' was trained with {method}, which llama.cpp cannot run.",
                f"Use the transformers reader: `--reader transformers:{model}`{merge if method in MERGES else ''}.",
            )
        if plugin == "llama-cpp" and not (path / GGUF).is_file():
            raise ModelNotFoundError(f"'{path}' has no {GGUF}.", f"Run `ragfm adapt export {path} --base {model}`.")
        path = path / GGUF if plugin == "llama-cpp" else path
        if not record.base["sha256"]:
            _log.warning(
                "'%s' was not trained by ragfm: it cannot be checked against the model's weights and the prompt.",
                adapter,
            )
    if plugin in ("llama-cpp", "transformers") and model:
        check_adapter(path, find_model(model, "reader"), prompt)
    elif plugin == "openai" and path.exists():
        check_adapter(path, None, prompt)
    return str(path)


def served_name(path: str) -> str:
    """The name of an adapter on a server: that of its GGUF file, or of its folder if the file is `adapter.gguf`."""
    file = PurePosixPath(path.replace("\\", "/"))
    if file.name == GGUF and file.parent.name:
        return file.parent.name
    return file.stem if file.suffix == ".gguf" else file.name


def virtual_tokens(adapter: str | Path | None) -> int:
    """The number of tokens that an adapter puts before each prompt (prefix and prompt tuning); 0 for other adapters."""
    folder = Path(adapter).expanduser() if adapter else None
    if folder is None or not (folder / PEFT_CONFIG).is_file():
        return 0
    tokens = _peft_config(folder).get("num_virtual_tokens")
    return tokens if isinstance(tokens, int) else 0


def trained_weights_sha256(folder: Path) -> str:
    """SHA-256 of the adapter's weights, or of all weights of a fully trained model. Raises DamagedModelError."""
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("model*.safetensors"))
    if not files:
        raise DamagedModelError(f"The folder '{folder}' has no {WEIGHTS}.", "Train or copy the adapter again.")
    return files_sha256(files)
