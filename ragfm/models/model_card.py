"""What a model file or folder reports about itself: size, quantisation, window, licence, chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragfm.core.cache import cache_folder, file_identity, read_json
from ragfm.core.errors import RagfmError
from ragfm.models.gguf_header import kv_cache_bytes, read_header
from ragfm.models.model_lookup import find_model

WINDOW = 4096
"""Tokens for which `megabytes_per_slot` is computed: the default window of a reader."""
_FREE_LICENCES = re.compile(
    r"apache-?2\.0|mit\b|bsd|isc\b|cc0|cc-by(?:-sa)?-\d|unlicense|wtfpl|zlib|(?:l|a)?gpl|mpl|postgresql", re.I
)


def describe_model(path: Path) -> dict[str, Any]:
    """Describe a GGUF file or a model folder. Unknown values are None. Raises RagfmError if it cannot be read."""
    values = _describe_gguf(path) if path.is_file() else _describe_folder(path)
    licence = read_licence(path)
    return {
        "model": values["model"],
        "file": str(path),
        "megabytes": round(values["weight_bytes"] / 1e6, 1),
        "architecture": values["architecture"],
        "quantisation": values["quantisation"],
        "context_tokens": values["context_tokens"],
        "licence": licence,
        "chat_template": values["chat_template"],
        "megabytes_per_slot": round(values["cache_bytes"] / 1e6, 1),
        "licence_restricts": bool(licence and licence_warning(licence)),
    }


def installed_models(folders: list[Path]) -> Iterator[tuple[str, str, Path]]:
    """Name, job and path of the bundled models, the models in the Hugging Face cache, and GGUF files in `folders`."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    for job in ("reader", "embedder"):
        try:
            yield "bundled", job, find_model("bundled", job)
        except RagfmError:
            continue
    try:
        repositories = sorted(scan_cache_dir(constants.HF_HUB_CACHE).repos, key=lambda repository: repository.repo_id)
    except CacheNotFound:
        repositories = []
    for repository in repositories:
        if repository.repo_type == "model" and repository.revisions:
            path = max(repository.revisions, key=lambda revision: revision.last_modified).snapshot_path
            if any((*path.glob("*.safetensors"), *path.glob("*/*.safetensors"))):
                yield repository.repo_id, "embedder" if (path / "modules.json").is_file() else "reader", path
            for file in sorted(path.glob("*.gguf")):
                yield str(file), "reader", file
    for folder in folders:
        for path in sorted(folder.rglob("*.gguf")):
            yield str(path), "reader", path


def read_licence(path: Path) -> str | None:
    """The licence named in a GGUF header, or in the README.md of a folder."""
    if path.is_file():
        licence = read_header(path).metadata.get("general.license")
        return None if licence is None else str(licence)
    readme = path / "README.md"
    if not readme.is_file():
        return None
    match = re.search(r"^license: *[\"']?([^\s\"']+)", readme.read_text("utf-8", "replace"), re.MULTILINE)
    return match[1] if match else None


def licence_warning(licence: str) -> str | None:
    """A warning, unless the licence is a well-known free one."""
    if _FREE_LICENCES.match(licence):
        return None
    return f"its licence ({licence}) may restrict what it is used for, or by whom: read it"


def first_use_warning(path: Path) -> str | None:
    """The licence warning when a model is used for the first time on this machine, None afterwards."""
    try:
        mark = cache_folder() / "licences" / file_identity(path)
        if mark.exists():
            return None
        licence = read_licence(path)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except (OSError, RagfmError):
        return None
    warning = licence_warning(licence) if licence else None
    return f"{path.name}: {warning}." if warning else None


def _describe_gguf(path: Path) -> dict[str, Any]:
    import llama_cpp

    header = read_header(path)
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    window = metadata.get(f"{architecture}.context_length")
    prefix = "GGML_TYPE_"
    type_names = {
        value: name.removeprefix(prefix) for name, value in vars(llama_cpp).items() if name.startswith(prefix)
    }
    most_frequent_type = max(header.types, key=lambda kind: header.types[kind], default=None)
    return {
        "model": metadata.get("general.name"),
        "weight_bytes": path.stat().st_size,
        "architecture": architecture,
        "quantisation": type_names.get(most_frequent_type),
        "context_tokens": window if isinstance(window, int) and window else None,
        "chat_template": "tokenizer.chat_template" in metadata,
        "cache_bytes": kv_cache_bytes(path, WINDOW),
    }


def _describe_folder(folder: Path) -> dict[str, Any]:
    config, tokenizer = (read_json(folder / name) for name in ("config.json", "tokenizer_config.json"))
    config = config.get("text_config") or config
    heads = config.get("num_attention_heads") or 0
    head_size = config.get("head_dim") or ((config.get("hidden_size") or 0) // heads if heads else 0)
    kv_heads = config.get("num_key_value_heads") or heads
    quantisation = (config.get("quantization_config") or {}).get("quant_method")
    window = config.get("max_position_embeddings")
    numbers_per_token = 2 * (config.get("num_hidden_layers") or 0) * kv_heads * head_size
    files = (*folder.glob("*.safetensors"), *folder.glob("*.gguf"), *folder.glob("*/*.safetensors"))
    return {
        "model": config.get("_name_or_path") or folder.name,
        "weight_bytes": sum(file.stat().st_size for file in files),
        "architecture": config.get("model_type"),
        "quantisation": quantisation or config.get("dtype") or config.get("torch_dtype"),
        "context_tokens": window,
        "chat_template": "chat_template" in tokenizer or (folder / "chat_template.jinja").is_file(),
        "cache_bytes": 2 * numbers_per_token * min(WINDOW, window or WINDOW),  # two bytes per number
    }
