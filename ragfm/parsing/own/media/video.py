"""Video (MP4, MOV, WebM, MKV, AVI): the transcript of the sound track and, with images, a frame of each scene.

A scene ends where the picture changes suddenly: where many pixels have other colours, or where they change much more
than in the seconds before. A camera that moves changes most pixels, but few colours.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing import heartbeat
from ragfm.parsing.figures import MAX_PIXELS
from ragfm.parsing.own.media.audio import format_time, has_audio, open_container, read_tags, transcribe_track
from ragfm.parsing.own.media.picture import add_picture
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HINT = "Run `pip install -e '.[audio]'` in ragfm's source folder."
_FORMATS = ((b"\x1a\x45\xdf\xa3", "matroska"), (b"RIFF", "avi"))
_SAMPLE_SECONDS = 0.5  # between the frames that are compared
_THUMBNAIL = (64, 36)  # pixels in which they are compared
_MIN_CHANGE = 5.0  # of 255, mean of all pixels; noise and a moving pointer change less
_RECOLOURED = 0.3  # share of the pixels whose colour, of 512, the picture before did not have
_SUDDEN = 3.0  # times the median change of the samples before
_SAMPLES_BEFORE = 8
_MAX_SCENE = 60.0  # seconds after which a picture that has changed slowly is another scene
_MAX_SCENES = 500
_MAX_SECONDS = 1e6  # later times are damage
_FRAME_SIDE = 1280  # pixels
_JPEG_QUALITY = 85


def read_video(data: bytes, name: str, *, images: bool = False) -> ParsedText:
    """Return the transcript in paragraphs and, with `images`, the frames as figures, in order of time.

    The place of each is its start time, of a frame that of its scene. Metadata: `seconds`, and tags. Raises
    SkipDocument where the extra `audio` is not installed or there is nothing to index, ParseError for a damaged file.
    """
    if find_spec("av") is None or not (has_audio() or images):
        raise SkipDocument(f"{name} is a video: transcribing it needs a speech model.", _HINT)
    import av

    heartbeat.model_started()
    # FFmpeg must not guess the format: some formats that it knows are lists of other files.
    container_format = next((form for start, form in _FORMATS if data.startswith(start)), "mov")

    parts: list[tuple[float, str | bytes]] = []
    try:
        with open_container(data, container_format) as container:
            metadata = read_tags(container)
            if container.duration:
                metadata["seconds"] = round(container.duration / av.time_base, 1)
            if has_audio() and container.streams.audio:
                parts += transcribe_track(container)[0]
        if images:
            with open_container(data, container_format) as container:
                parts += _scene_images(container, name)
    except (av.FFmpegError, ValueError, LookupError) as error:
        raise ParseError(f"{name} is a damaged video: {error}") from error
    builder = MarkdownBuilder()
    for seconds, part in sorted(parts, key=lambda part: part[0]):
        time = format_time(seconds)
        if isinstance(part, str):
            builder.add_place(time, builder.add_block(part))
            continue
        start = builder.length
        add_picture(builder, part, [""], f"{name} at {time}")  # unless it is of one colour
        if builder.length > start:
            builder.add_place(time, start and start + 2)  # after the blank line
    parsed = builder.build(metadata)
    if not parsed.text:
        raise SkipDocument(f"{name} is a video without speech.")
    return parsed


class _Scene(NamedTuple):
    """A scene: its start in seconds, and a frame from shortly before its end, when a slide is complete."""

    start: float
    frame: Any
    thumbnail: NDArray[np.int16]


def _scene_images(container: Any, name: str) -> Iterator[tuple[float, bytes]]:
    """The start time and the image of each scene that differs from the scenes before."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:  # no picture, or an unknown codec
        return
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise ParseError(f"{name} has frames of over {MAX_PIXELS:,} pixels.")
    stream.codec_context.skip_frame = "NONREF"
    shown: list[NDArray[np.int16]] = []
    for scene in _scenes(_samples(container, stream)):
        heartbeat.beat()
        if any(_change(scene.thumbnail, earlier) < _MIN_CHANGE for earlier in shown):
            continue  # back to an earlier picture
        shown.append(scene.thumbnail)
        image = scene.frame.to_image()
        if rotation := getattr(scene.frame, "rotation", 0):
            image = image.rotate(rotation, expand=True)
        image.thumbnail((_FRAME_SIDE, _FRAME_SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        yield scene.start, file.getvalue()
        if len(shown) == _MAX_SCENES:
            return


def _samples(container: Any, stream: Any) -> Iterator[_Scene]:
    """A frame about every half second, as a scene of its own."""
    import av
    import numpy as np

    following = 0.0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:  # skip a damaged packet
            continue
        for frame in frames:
            if frame.time is not None and following <= frame.time < _MAX_SECONDS:
                following = frame.time + _SAMPLE_SECONDS
                small = frame.reformat(*_THUMBNAIL, format="rgb24").to_ndarray()
                yield _Scene(frame.time, frame, small.astype(np.int16))
        heartbeat.beat()


def _scenes(samples: Iterator[_Scene]) -> Iterator[_Scene]:
    scene: list[_Scene] = []  # its first sample, then its last two
    changes: deque[float] = deque(maxlen=_SAMPLES_BEFORE)
    for sample in samples:
        if scene:
            change = _change(sample.thumbnail, scene[-1].thumbnail)
            much_more = bool(changes) and change >= _SUDDEN * median(changes)
            sudden = change >= _MIN_CHANGE and (much_more or _recoloured(sample, scene[-1]) >= _RECOLOURED)
            slow = sample.start - scene[0].start > _MAX_SCENE and (
                _change(sample.thumbnail, scene[0].thumbnail) > _MIN_CHANGE
            )
            changes.append(change)
            if sudden or slow:
                yield scene[-2 if len(scene) > 2 else -1]._replace(start=scene[0].start)
                scene = []
        scene = [*scene[:1], *scene[1:][-1:], sample]
    if scene:
        yield scene[-2 if len(scene) > 2 else -1]._replace(start=scene[0].start)


def _recoloured(first: _Scene, second: _Scene) -> float:
    import numpy as np

    counts = []
    for scene in (first, second):
        red, green, blue = np.moveaxis(scene.thumbnail // 32, 2, 0)
        counts.append(np.bincount((64 * red + 8 * green + blue).ravel(), minlength=512))
    return float(abs(counts[0] - counts[1]).sum() / counts[0].sum() / 2)


def _change(first: NDArray[np.int16], second: NDArray[np.int16]) -> float:
    return float(abs(first - second).mean())
