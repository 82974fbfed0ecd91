"""Speed of a reader on this machine, measured and saved."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ragfm.core.cache import cache_folder, file_identity, read_json, replace_file
from ragfm.core.types import Message, Reader, Sampling, Stream
from ragfm.models.hardware import peak_memory_bytes
from ragfm.samples import handbook_text

PROMPT_TOKENS, ANSWER_TOKENS, CONCURRENT_ANSWERS = 500, 32, 4
_SHORT_PROMPT_TOKENS = 50
_INSTRUCTION = "\n\nSay what this is about, at length."

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReaderSpeed:
    """Tokens per second of a prompt, of one answer and of `CONCURRENT_ANSWERS` answers; the process's peak memory."""

    prompt_tokens_per_second: float
    tokens_per_second: float
    tokens_per_second_together: float
    first_token_ms: float
    peak_megabytes: int


def measure_speed(reader: Reader, path: Path | None = None) -> ReaderSpeed:
    """Measure a reader, and save the result for the model at `path`. Raises the same errors as `Reader.stream`."""
    _answer_all([reader.stream(_prompt(reader, "warm", _SHORT_PROMPT_TOKENS), Sampling(max_tokens=2))])

    start = time.perf_counter()
    stream = reader.stream(_prompt(reader, "first", PROMPT_TOKENS), Sampling(max_tokens=1))
    _answer_all([stream])
    seconds = time.perf_counter() - start

    sampling = Sampling(max_tokens=ANSWER_TOKENS)
    single = _answer_all([reader.stream(_prompt(reader, "alone", _SHORT_PROMPT_TOKENS), sampling)])
    concurrent = _answer_all(
        [
            reader.stream(_prompt(reader, f"{number}th", _SHORT_PROMPT_TOKENS), sampling)
            for number in range(CONCURRENT_ANSWERS)
        ]
    )
    speed = ReaderSpeed(
        prompt_tokens_per_second=round(stream.usage.prompt_tokens / seconds, 1),
        tokens_per_second=single,
        tokens_per_second_together=concurrent,
        first_token_ms=round(1000 * seconds, 1),
        peak_megabytes=peak_memory_bytes() >> 20,
    )
    if path:
        speeds = {**read_json(_file()), file_identity(path): asdict(speed)}
        try:
            replace_file(_file(), json.dumps(speeds, indent=1).encode())
        except OSError as error:
            _log.warning("The speed cannot be stored in %s: %s", _file(), error)
    return speed


def saved_speed(path: Path) -> ReaderSpeed | None:
    """The saved measurement of a model, if its file has not changed since."""
    try:
        return ReaderSpeed(**read_json(_file()).get(file_identity(path), {}))
    except (OSError, TypeError):
        return None


def _prompt(reader: Reader, first_word: str, max_tokens: int) -> list[Message]:
    """A prompt of about `max_tokens` tokens. A different first word ensures that no cached prefix is reused."""
    words = handbook_text().split()
    count = max_tokens
    while True:
        messages = [Message("user", " ".join([first_word, *words[:count]]) + _INSTRUCTION)]
        if count <= 8 or reader.count_tokens(messages) <= max_tokens:
            return messages
        count = count * 9 // 10


def _answer_all(streams: Sequence[Stream]) -> float:
    """Read all streams; the number of generated tokens per second."""
    start = time.perf_counter()
    for stream in streams:
        for _ in stream:
            pass
    return round(sum(stream.usage.completion_tokens for stream in streams) / (time.perf_counter() - start), 1)


def _file() -> Path:
    return cache_folder() / "speeds.json"
