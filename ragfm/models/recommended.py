"""Open models that are recommended: readers with the file to download and its checksum, and embedding models."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ragfm.core.errors import UnsupportedError
from ragfm.models.download import HubFile


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedModel(HubFile):
    """A GGUF file on the Hugging Face hub, pinned by revision and checksum.

    `memory_megabytes` is for the weights and one request with a window of 4,096 tokens. `context_tokens` is the longest
    window that the model supports. `cache_bytes_per_token`: keys and values of all layers, two bytes per number.
    """

    name: str
    cache_bytes_per_token: int
    context_tokens: int
    languages: str

    @property
    def memory_megabytes(self) -> int:
        """Approximate memory in MB."""
        return round(((self.bytes or 0) + 4096 * self.cache_bytes_per_token) / 1e6)

    @property
    def speed(self) -> Literal["fast", "medium", "slow"]:
        """Class of speed. A token takes as long as reading the weights once, so it falls with the file's size."""
        size = self.bytes or 0
        return "fast" if size < 1e9 else "medium" if size < 2.2e9 else "slow"


_LISTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
RECOMMENDED = tuple(RecommendedModel(**model) for model in _LISTS["models"])
"""By memory. `recommended.toml` has their files and checksums."""
RECOMMENDED_EMBEDDERS: tuple[Mapping[str, Any], ...] = tuple(_LISTS["embedders"])
"""Embedding models on the Hugging Face hub, or `bundled`, by `beir`, the best first.

`megabytes` is the download. `beir` is the mean nDCG@10 in percent over the public sets of BEIR (Thakur et al. 2021), as
`beir_source` states it. `tokens_per_second` and `memory_megabytes` are measured with random weights of the same shape:
of one core, in fp32.
"""


def find_hub_file(name: str, file: str | None) -> HubFile | None:
    """A file by the name of a recommended model, or by repository and file; None for a whole repository.

    Raises UnsupportedError if it is not a GGUF file.
    """
    for model in RECOMMENDED:
        if (name, file) in ((model.name, None), (model.repository, model.file)):
            return model
    if file is None:
        return None
    if not file.endswith(".gguf"):
        raise UnsupportedError(f"'{file}' is not a GGUF file.", "Specify a GGUF file, or only the repository.")
    return HubFile(name, file)
