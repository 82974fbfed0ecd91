"""What a model file or folder reports about itself: size, quantisation, window, licence, chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragfm.core.cache import read_json
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
    if path.is_file():
        from ragfm.models.llama_library import llama_cpp

        header = read_header(path)
        metadata, types = header.metadata, header.types
        architecture, name = metadata.get("general.architecture"), metadata.get("general.name")
        window = metadata.get(f"{architecture}.context_length")
        window = window if isinstance(window, int) and window else None
        prefix = "GGML_TYPE_"
        type_names = {
            value: key.removeprefix(prefix) for key, value in vars(llama_cpp).items() if key.startswith(prefix)
        }
        quantisation = type_names.get(max(types, key=lambda kind: types[kind], default=None))
        template = "tokenizer.chat_template" in metadata
        weight_bytes, cache_bytes = path.stat().st_size, kv_cache_bytes(path, WINDOW)
    else:
        config, tokenizer = (read_json(path / file) for file in ("config.json", "tokenizer_config.json"))
        config = config.get("text_config") or config
        architecture, name = config.get("model_type"), config.get("_name_or_path") or path.name
        window = config.get("max_position_embeddings")
        quantisation = (config.get("quantization_config") or {}).get("quant_method")
        quantisation = quantisation or config.get("dtype") or config.get("torch_dtype")
        template = "chat_template" in tokenizer or (path / "chat_template.jinja").is_file()
        files = (*path.glob("*.safetensors"), *path.glob("*.gguf"), *path.glob("*/*.safetensors"))
        weight_bytes = sum(file.stat().st_size for file in files)
        heads = config.get("num_attention_heads") or 0
        head_size = config.get("head_dim") or ((config.get("hidden_size") or 0) // heads if heads else 0)
        kv_heads = config.get("num_key_value_heads") or heads
        numbers_per_token = 2 * (config.get("num_hidden_layers") or 0) * kv_heads * head_size
        cache_bytes = 2 * numbers_per_token * min(WINDOW, window or WINDOW)  # two bytes per number
    licence = read_licence(path)
    return {
        "model": name,
        "file": str(path),
        "megabytes": round(weight_bytes / 1e6, 1),
        "architecture": architecture,
        "quantisation": quantisation,
        "context_tokens": window,
        "licence": licence,
        "chat_template": template,
        "megabytes_per_slot": round(cache_bytes / 1e6, 1),
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
