"""What a model says of itself: size, quantisation, window, licence, template; and which models are on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragfm.core.cache import cache_folder, file_identity, read_json
from ragfm.core.errors import RagfmError
from ragfm.models.gguf_header import read_header
from ragfm.models.model_lookup import find_model

__all__ = ["WINDOW", "about", "installed", "licence_of", "restriction", "said_once"]

WINDOW = 4096
"""Tokens of a request for which the memory is worked out: a reader's default."""
_FREE = re.compile(
    r"apache-?2\.0|mit\b|bsd|isc\b|cc0|cc-by(?:-sa)?-\d|unlicense|wtfpl|zlib|(?:l|a)?gpl|mpl|postgresql", re.I
)


def about(path: Path) -> dict[str, Any]:
    """What a file or a folder is; None for what it does not say. Raises RagfmError where it can't be read."""
    card = _of_gguf(path) if path.is_file() else _of_folder(path)
    licence = card["licence"] = licence_of(path)
    return {**card, "licence_restricts": bool(licence and restriction(licence))}


def installed(folders: list[Path]) -> Iterator[tuple[str, str, Path]]:
    """Name, job and path of the bundled models, of those in the Hugging Face cache, and of GGUF files in folders."""
    for job in ("reader", "embedder"):
        try:
            yield "bundled", job, find_model("bundled", job)
        except RagfmError:
            continue
    for name, path in _cached():
        yield name, "embedder" if (path / "modules.json").is_file() else "reader", path
    for folder in folders:
        for path in sorted(folder.rglob("*.gguf")):
            yield str(path), "reader", path


def licence_of(path: Path) -> str | None:
    """What the model's own file says."""
    if path.is_file():
        says = read_header(path).metadata.get("general.license")
        return None if says is None else str(says)
    card = path / "README.md"
    found = (
        re.search(r"^license: *[\"']?([^\s\"']+)", card.read_text("utf-8"), re.MULTILINE) if card.is_file() else None
    )
    return found[1] if found else None


def restriction(licence: str) -> str | None:
    """A word of warning for a licence that is none of the well-known free ones."""
    if _FREE.match(licence):
        return None
    return f"its licence ({licence}) may restrict what it is used for, or by whom: read it"


def said_once(path: Path) -> str | None:
    """The warning, when a model is used for the first time here."""
    try:
        mark = cache_folder() / "licences" / file_identity(path)
        if mark.exists():
            return None
        licence = licence_of(path)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except (OSError, RagfmError):
        return None
    warning = restriction(licence) if licence else None
    return warning and f"{path.name}: {warning}."


def _of_gguf(path: Path) -> dict[str, Any]:
    from gguf import GGMLQuantizationType

    header = read_header(path)
    says = header.metadata
    architecture = says.get("general.architecture")

    def number(name: str) -> int:
        value = says.get(f"{architecture}.{name}")
        return value if isinstance(value, int) else 0

    heads = number("attention.head_count")
    size = number("attention.key_length") or (number("embedding_length") // heads if heads else 0)
    cells = 2 * number("block_count") * (number("attention.head_count_kv") or heads) * size
    context = number("context_length")
    return {
        "model": says.get("general.name"),
        "file": str(path),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "architecture": architecture,
        "quantisation": GGMLQuantizationType(max(header.types, key=lambda kind: header.types[kind])).name,
        "context_tokens": context or None,
        "licence": None,
        "chat_template": "tokenizer.chat_template" in says,
        "megabytes_per_slot": round(2 * cells * min(WINDOW, context or WINDOW) / 1e6, 1),
    }


def _of_folder(folder: Path) -> dict[str, Any]:
    config, tokenizer = (read_json(folder / name) for name in ("config.json", "tokenizer_config.json"))
    config = config.get("text_config", config)
    quantised = config.get("quantization_config", {})
    files = (*folder.glob("*.safetensors"), *folder.glob("*.gguf"), *folder.glob("*/*.safetensors"))
    heads = config.get("num_attention_heads") or 0
    size = config.get("head_dim") or ((config.get("hidden_size") or 0) // heads if heads else 0)
    cells = 2 * (config.get("num_hidden_layers") or 0) * (config.get("num_key_value_heads") or heads) * size
    context = config.get("max_position_embeddings")
    return {
        "model": config.get("_name_or_path") or folder.name,
        "file": str(folder),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "architecture": config.get("model_type"),
        "quantisation": quantised.get("quant_method") or config.get("dtype") or config.get("torch_dtype"),
        "context_tokens": context,
        "licence": None,
        "chat_template": "chat_template" in tokenizer or (folder / "chat_template.jinja").is_file(),
        "megabytes_per_slot": round(2 * cells * min(WINDOW, context or WINDOW) / 1e6, 1),
    }


def _cached() -> Iterator[tuple[str, Path]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type == "model" and repository.revisions:
            path = max(repository.revisions, key=lambda revision: revision.last_modified).snapshot_path
            weights = sorted(path.glob("*.gguf"))
            if any((*path.glob("*.safetensors"), *path.glob("*/*.safetensors"))):
                yield repository.repo_id, path
            for file in weights:
                yield str(file), file
