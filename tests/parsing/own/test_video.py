"""Videos, which the tests encode: a frame for each scene, the transcript, and their times."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from support.parsed_documents import document

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob
from ragfm.parsing import media_type, parse
from ragfm.parsing.own.media import audio, picture, video

av = pytest.importorskip("av", reason="the extra `audio` is not installed")
SIZE = (320, 240)
FONT = ImageFont.load_default(40)
RATE = 10  # frames per second


def slide(text: str, color: str = "white", mark: int = 0) -> Image.Image:
    image = Image.new("RGB", SIZE, color)
    draw = ImageDraw.Draw(image)
    draw.text((20, 90), text, "black", FONT)
    draw.ellipse((mark, 10, mark + 12, 22), "red")  # a pointer that moves
    return image


def bar(left: int, width: int, color: str, background: str) -> Image.Image:
    image = Image.new("RGB", SIZE, background)
    ImageDraw.Draw(image).rectangle((left, 0, left + width, SIZE[1]), fill=color)
    return image


def encoded(frames: Sequence[Image.Image], container: str = "mp4", codec: str = "libx264", sound: bytes = b"") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream: Any = target.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {}
        track: Any = target.add_stream("aac", rate=48_000) if sound else None
        for frame in frames:
            target.mux(stream.encode(av.VideoFrame.from_image(frame)))
        target.mux(stream.encode(None))
        if track is not None:
            with av.open(io.BytesIO(sound)) as source:
                for part in source.decode(audio=0):
                    target.mux(track.encode(part))
            target.mux(track.encode(None))
    return file.getvalue()


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "has_audio", lambda: False)
    monkeypatch.setattr(picture, "has_ocr", lambda: False)


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("avi", "mpeg4"), pytest.param("webm", "libvpx", marks=pytest.mark.slow)],
)
def test_a_frame_of_each_scene_has_its_time_as_place(container: str, codec: str) -> None:
    scenes = (("One", "white"), ("Two", "lightblue"), ("One", "white"), ("Three", "black"), ("Three", "tan"))
    frames = [slide(text, color, mark=3 * number) for text, color in scenes for number in range(3 * RATE)]
    data = encoded(frames, container, codec)
    assert media_type(data, "talk") == "video/*"
    parsed = video.read_video(data, "talk", images=True)
    times = ["00:00:00", "00:00:03", "00:00:09", "00:00:12"]  # without the return to One
    assert parsed.text.split("\n\n") == [f"![talk at {time}]()" for time in times]
    places = [mark for mark in parsed.marks if mark.kind == "place"]
    figures = [mark for mark in parsed.marks if mark.kind == "figure"]
    assert [mark.value for mark in places] == times
    assert [(mark.start, mark.end) for mark in places] == [(mark.start, mark.end) for mark in figures]
    assert parsed.metadata["seconds"] == pytest.approx(15, abs=0.2)
    colors = [Image.open(io.BytesIO(parsed.images[mark.image])).getpixel((300, 200)) for mark in figures]
    for color, expected in zip(colors, [(255, 255, 255), (173, 216, 230), (0, 0, 0), (210, 180, 140)], strict=True):
        assert color == pytest.approx(expected, abs=12)


@pytest.mark.usefixtures("no_models")
def test_motion_is_one_scene_and_a_frame_shows_its_end() -> None:
    moving = [bar(5 * number, 12, "gray", "white") for number in range(4 * RATE)]
    growing = [slide("Step 1" if number < 2 * RATE else "Step 1 2", "tan") for number in range(4 * RATE)]
    parsed = video.read_video(encoded([*moving, *growing]), "talk", images=True)
    assert [mark.value for mark in parsed.marks if mark.kind == "place"] == ["00:00:00", "00:00:04"]
    last = Image.open(io.BytesIO(parsed.images[parsed.marks[-2].image]))
    later = int(20 + FONT.getlength("Step 1 "))
    assert np.asarray(last.convert("L").crop((later, 80, later + 40, 150))).min() < 80


@pytest.mark.usefixtures("no_models")
def test_other_colours_are_a_new_scene_even_after_much_motion() -> None:
    frames = [bar(9 * number, 90, "black", color) for color in ("white", "tan") for number in range(2 * RATE)]
    parsed = video.read_video(encoded(frames), "film", images=True)
    assert [mark.value for mark in parsed.marks if mark.kind == "place"] == ["00:00:00", "00:00:02"]


@pytest.mark.usefixtures("no_models")
def test_errors_of_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded([slide("One")] * RATE)
    with pytest.raises(
        SkipDocument, match=r"a\.mp4 is a video: transcribing it needs a speech model\. Run `pip install"
    ):
        parse(Blob(data), "a.mp4")
    with pytest.raises(SkipDocument, match="without speech"):
        video.read_video(encoded([slide("", "black", 400)] * RATE), "a.mp4", images=True)  # of one colour
    with pytest.raises(ParseError, match=r"a\.mp4 is a damaged video"):
        video.read_video(data[:400], "a.mp4", images=True)
    with pytest.raises(ParseError, match=r"named \.mp4 but is not a video"):
        parse(Blob(b"\0\1\2\3" * 100), "a.mp4")
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(ParseError, match="frames of over 1,000 pixels"):
        video.read_video(data, "a.mp4", images=True)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not audio.has_audio(), reason="the extra `audio` is not installed")
def test_transcript_and_frames_are_in_order_of_time(data: Path) -> None:
    pytest.importorskip("rapidocr")
    spoken = (data / "documents/markitdown/markitdown/tests/test_files/test.wav").read_bytes()  # counts from 1.2 s on
    frames = [slide(text, color) for text, color in (("First", "white"), ("Last", "tan")) for _ in range(4 * RATE)]
    talk = encoded(frames, sound=spoken)
    assert document(talk, "talk.mp4").marks[0].value == "00:00:01"
    parsed = video.read_video(talk, "talk.mp4", images=True)
    first, words, last = parsed.text.split("\n\n")
    assert (first, last) == ("First", "Last")
    assert "four" in words.lower() or "4" in words
    assert [mark.value for mark in parsed.marks if mark.kind == "place"] == ["00:00:00", "00:00:01", "00:00:04"]
