"""How fast a reader is on this machine, and what was measured of it before."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ragfm.core.cache import cache_folder, file_identity, read_json, replace_file
from ragfm.core.types import Message, Reader, Sampling, Stream
from ragfm.models.hardware import peak_bytes
from ragfm.models.sample_text import SAMPLE_TEXT

__all__ = ["Speed", "known_speed", "measure_speed"]

PROMPT, ANSWER, TOGETHER = 500, 32, 4
"""Tokens of the prompt, at most; of an answer; and how many are asked for at once."""
_ASK = "\n\nSay what this is about, at length."


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of a prompt, of an answer alone, and of `TOGETHER` answers; the process's memory at its most."""

    prompt_tokens_per_second: float
    tokens_per_second: float
    tokens_per_second_together: float
    first_token_ms: float
    peak_megabytes: int


def measure_speed(reader: Reader, path: Path | None = None) -> Speed:
    """Ask a few things of it; kept for the model at `path`. Raises what `stream` does."""
    _said(reader.stream(_asked(reader, "warm", 50), Sampling(max_tokens=2)))
    start = time.perf_counter()
    stream = reader.stream(_asked(reader, "first", PROMPT), Sampling(max_tokens=1))
    _said(stream)
    seconds = time.perf_counter() - start
    alone = _per_second([reader.stream(_asked(reader, "alone", 50), Sampling(max_tokens=ANSWER))])
    sampling = Sampling(max_tokens=ANSWER)
    together = _per_second([reader.stream(_asked(reader, f"{n}th", 50), sampling) for n in range(TOGETHER)])
    of_prompt, first = round(stream.usage.prompt_tokens / seconds, 1), round(1000 * seconds, 1)
    speed = Speed(of_prompt, alone, together, first, peak_bytes() >> 20)
    if path:
        _keep(path, speed)
    return speed


def known_speed(path: Path) -> Speed | None:
    """What was measured of a model as it is now."""
    try:
        return Speed(**read_json(_file()).get(file_identity(path), {}))
    except (OSError, TypeError):
        return None


def _asked(reader: Reader, begin: str, tokens: int) -> list[Message]:
    """A prompt of about so many tokens; each begins otherwise, so that nothing of it is in memory."""
    words = SAMPLE_TEXT.split()
    count = tokens
    while (
        count > 8
        and reader.count_tokens(messages := [Message("user", " ".join([begin, *words[:count]]) + _ASK)]) > tokens
    ):
        count = count * 9 // 10
    return messages


def _said(stream: Stream) -> str:
    return "".join(stream)


def _per_second(streams: list[Stream]) -> float:
    start = time.perf_counter()
    for stream in streams:
        _said(stream)
    return round(sum(stream.usage.completion_tokens for stream in streams) / (time.perf_counter() - start), 1)


def _file() -> Path:
    return cache_folder() / "speeds.json"


def _keep(path: Path, speed: Speed) -> None:
    replace_file(_file(), json.dumps({**read_json(_file()), file_identity(path): asdict(speed)}, indent=1).encode())
