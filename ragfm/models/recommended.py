"""Open models that are recommended as readers, with the file to download and its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragfm.core.errors import UnsupportedError
from ragfm.models.download import HubFile

LLAMA_CONDITIONS = (
    "free of charge below 700 million monthly users; redistribution must display 'Built with Llama' and include the "
    "licence; Meta's acceptable use policy applies"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedModel(HubFile):
    """A GGUF file on the Hugging Face hub, pinned by revision and checksum.

    `memory_megabytes` is for the weights and one request with a window of 4,096 tokens. `context_tokens` is the longest
    window that the model supports.
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


def _cache_bytes(layers: int, kv_heads: int, head_size: int) -> int:
    return 2 * layers * kv_heads * head_size * 2  # keys and values, two bytes per number


_EUROPEAN = "en, de, fr, es, it, pt"
RECOMMENDED = (
    RecommendedModel(
        "bartowski/Llama-3.2-1B-Instruct-GGUF",
        "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
        "067b946cf014b7c697f3654f621d577a3e3afd1c",
        "6f85a640a97cf2bf5b8e764087b1e83da0fdb51d7c9fab7d0fece9385611df83",
        807_694_464,
        "llama3.2",
        LLAMA_CONDITIONS,
        name="llama-3.2-1b",
        cache_bytes_per_token=_cache_bytes(16, 8, 64),
        context_tokens=131_072,
        languages=f"{_EUROPEAN}, hi, th",
    ),
    RecommendedModel(
        "Qwen/Qwen3-0.6B-GGUF",
        "Qwen3-0.6B-Q8_0.gguf",
        "23749fefcc72300e3a2ad315e1317431b06b590a",
        "9465e63a22add5354d9bb4b99e90117043c7124007664907259bd16d043bb031",
        639_446_688,
        "apache-2.0",
        name="qwen3-0.6b",
        cache_bytes_per_token=_cache_bytes(28, 8, 128),
        context_tokens=32_768,
        languages="100 languages",
    ),
    RecommendedModel(
        "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        "qwen2.5-1.5b-instruct-q4_k_m.gguf",
        "91cad51170dc346986eccefdc2dd33a9da36ead9",
        "6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e",
        1_117_320_736,
        "apache-2.0",
        name="qwen2.5-1.5b",
        cache_bytes_per_token=_cache_bytes(28, 2, 128),
        context_tokens=32_768,
        languages="29 languages",
    ),
    RecommendedModel(
        "ibm-granite/granite-3.3-2b-instruct-GGUF",
        "granite-3.3-2b-instruct-Q4_K_M.gguf",
        "7cdf86ccd1f1bb3491c9b7017b033f2e51367397",
        "ac71e9e32c0bea919b409c5918f69ca74339854b0319c5065e4e9fb6d95c4852",
        1_545_303_328,
        "apache-2.0",
        name="granite-3.3-2b",
        cache_bytes_per_token=_cache_bytes(40, 8, 64),
        context_tokens=131_072,
        languages=f"{_EUROPEAN}, nl, cs, ar, ja, ko, zh",
    ),
    RecommendedModel(
        "ggml-org/SmolLM3-3B-GGUF",
        "SmolLM3-Q4_K_M.gguf",
        "4965cb60b150737b68a0408c36aeefb65078f894",
        "8334b850b7bd46238c16b0c550df2138f0889bf433809008cc17a8b05761863e",
        1_915_305_312,
        "apache-2.0",
        name="smollm3-3b",
        cache_bytes_per_token=_cache_bytes(36, 4, 128),
        context_tokens=65_536,
        languages=_EUROPEAN,
    ),
    RecommendedModel(
        "Qwen/Qwen3-1.7B-GGUF",
        "Qwen3-1.7B-Q8_0.gguf",
        "90862c4b9d2787eaed51d12237eafdfe7c5f6077",
        "061b54daade076b5d3362dac252678d17da8c68f07560be70818cace6590cb1a",
        1_834_426_016,
        "apache-2.0",
        name="qwen3-1.7b",
        cache_bytes_per_token=_cache_bytes(28, 8, 128),
        context_tokens=32_768,
        languages="100 languages",
    ),
    RecommendedModel(
        "bartowski/Llama-3.2-3B-Instruct-GGUF",
        "Llama-3.2-3B-Instruct-Q4_K_M.gguf",
        "5ab33fa94d1d04e903623ae72c95d1696f09f9e8",
        "6c1a2b41161032677be168d354123594c0e6e67d2b9227c84f296ad037c728ff",
        2_019_377_696,
        "llama3.2",
        LLAMA_CONDITIONS,
        name="llama-3.2-3b",
        cache_bytes_per_token=_cache_bytes(28, 8, 128),
        context_tokens=131_072,
        languages=f"{_EUROPEAN}, hi, th",
    ),
    RecommendedModel(
        "Qwen/Qwen3-4B-GGUF",
        "Qwen3-4B-Q4_K_M.gguf",
        "bc640142c66e1fdd12af0bd68f40445458f3869b",
        "7485fe6f11af29433bc51cab58009521f205840f5b4ae3a32fa7f92e8534fdf5",
        2_497_280_256,
        "apache-2.0",
        name="qwen3-4b",
        cache_bytes_per_token=_cache_bytes(36, 8, 128),
        context_tokens=32_768,
        languages="100 languages",
    ),
    RecommendedModel(
        "Qwen/Qwen3-8B-GGUF",
        "Qwen3-8B-Q4_K_M.gguf",
        "7c41481f57cb95916b40956ab2f0b139b296d974",
        "d98cdcbd03e17ce47681435b5150e34c1417f50b5c0019dd560e4882c5745785",
        5_027_783_488,
        "apache-2.0",
        name="qwen3-8b",
        cache_bytes_per_token=_cache_bytes(36, 8, 128),
        context_tokens=32_768,
        languages="100 languages",
    ),
)
"""By memory. The checksums were published by several independent users of the files."""


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
