from __future__ import annotations

import io
import re
import wave
from pathlib import Path
from typing import Any

import pytest
from support.parsed_documents import document

from ragfm import Collection
from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob
from ragfm.parsing import media_type, parse
from ragfm.parsing.own.media import audio

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not audio.has_audio(), reason="the extra `audio` is not installed"),
]
NUMBERS = ["one", "two", "three", "four", "five"]


def counted(text: str) -> list[str]:
    """The numbers in a transcript, in words: a recogniser may write "One, two", "1, 2" or "One two."."""
    words = [re.sub(r"[^a-z0-9]", "", word) for word in text.lower().split()]
    return [NUMBERS[int(word) - 1] if word in set("12345") else word for word in words if word]


@pytest.fixture
def spoken(data: Path) -> Path:
    """The folder of three recordings in which somebody counts to five, starting at 1.2 s."""
    return data / "documents" / "markitdown" / "markitdown" / "tests" / "test_files"


def sound(samples: bytes, channels: int = 1, rate: int = 16_000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
    return stream.getvalue()


def recoded(data: bytes, container: str, codec: str) -> bytes:
    import av

    stream = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(stream, "w", format=container) as target:
        track: Any = target.add_stream(codec, rate=48_000)
        for frame in source.decode(audio=0):
            target.mux(track.encode(frame))
        target.mux(track.encode(None))
    return stream.getvalue()


def test_the_transcript_has_times_as_places(spoken: Path) -> None:
    wav = (spoken / "test.wav").read_bytes()
    files = {f"a.{kind}": (spoken / f"test.{kind}").read_bytes() for kind in ("wav", "mp3", "m4a")}
    files |= {"a.flac": recoded(wav, "flac", "flac"), "a.ogg": recoded(wav, "ogg", "libopus")}
    files |= {"a.mp4": recoded(wav, "mp4", "aac"), "a.mkv": recoded(wav, "matroska", "aac")}
    kinds = {name: "video/*" if name in ("a.mp4", "a.mkv") else "audio/*" for name in files}
    assert {name: media_type(data, name) for name, data in files.items()} == kinds
    for name in ("a.wav", "a.mp3", "a.ogg", "a.mkv"):
        parsed = document(files[name], name)
        assert (counted(parsed.text), parsed.media_type) == (NUMBERS, kinds[name]), name
        assert [(mark.kind, mark.value) for mark in parsed.marks] == [("place", "00:00:01")], name
        assert parsed.metadata["seconds"] == pytest.approx(6.4, abs=0.1), name
        assert parsed.metadata.get("author") == ("Artist Name Test String" if name == "a.mp3" else None)


def test_blocks_of_a_long_recording_cut_no_words(spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wave.open(str(spoken / "test.wav")) as file:
        often = sound(file.readframes(file.getnframes()) * 3, file.getnchannels(), file.getframerate())
    monkeypatch.setattr(audio, "_BLOCK", 10 * 16_000)  # each cuts a counting
    monkeypatch.setattr(audio, "_PAUSE", 0.5)
    parsed = document(often, "a.wav")
    assert [counted(part) for part in parsed.text.split("\n\n")] == [NUMBERS] * 3
    times = [mark.value for mark in parsed.marks]
    assert [int(time[-2:]) for time in times] == pytest.approx([1, 7, 14], abs=1)


def test_a_recording_is_found_by_its_words(collection: Collection, spoken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    (folder / "call.m4a").write_bytes((spoken / "test.m4a").read_bytes())
    assert collection.sync(folder).added == 1  # by a process without network access
    hit = collection.search("three four five", k=1)[0]
    assert (hit.uri, hit.place) == ("calls/call.m4a", "00:00:01")


def test_errors_of_audio_files(spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mp3 = (spoken / "test.mp3").read_bytes()
    with pytest.raises(SkipDocument, match="without speech"):
        parse(Blob(sound(bytes(96_000))), "a.wav")
    for data in (b"ID3\x04" + b"x" * 5000, sound(b""), (spoken / "test.m4a").read_bytes()[:3000]):
        with pytest.raises(ParseError, match="damaged audio file"):
            parse(Blob(data), "a.m4a")
    with pytest.raises(ParseError, match="sample rate is 1 Hz"):
        parse(Blob(sound(bytes(96_000), rate=1)), "a.wav")
    with pytest.raises(ParseError, match=r"named \.mp3 but is not an audio file"):
        parse(Blob(b"\0\1\2\3" * 100), "a.mp3")
    assert counted(document(mp3[:120_000], "a.mp3").text)[:2] == NUMBERS[:2]
    assert media_type(b"ID3 is a tag.", "a.txt") == "text/plain"
    monkeypatch.setattr(audio, "find_spec", lambda _: None)
    with pytest.raises(SkipDocument, match="speech model") as skipped:
        parse(Blob(mp3), "a.mp3")
    assert "pip install -e '.[audio]'" in skipped.value.hint


def test_paragraphs_end_with_sentences_and_pauses() -> None:
    segments = [
        audio.Segment(at, at + 9.5, f"{at}{end}") for at, end in zip(range(0, 120, 10), ".,.,,,,,,,,.", strict=True)
    ]
    segments.append(audio.Segment(140, 141, "140."))
    paragraphs = [[segment.start for segment in paragraph] for paragraph in audio.group_paragraphs(segments)]
    assert paragraphs == [[0, 10, 20], [30, 40, 50, 60, 70, 80], [90, 100, 110], [140]]
    assert audio.format_time(3725.9) == "01:02:05"
