"""Answers from figures: by their pictures with a reader that sees, by their text with one that does not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from ragfm import Collection, Rag, Settings
from ragfm.cli.output import answer_json, print_answer
from ragfm.core.errors import CollectionError, UnsupportedError
from ragfm.core.types import Hit, ImagePart, Message
from ragfm.rag import CANNOT_SEE
from ragfm.testing import HashingEmbedder, ScriptedReader

QUESTION = "Which region sold most?"
SEEN = "The western region is shown as the tallest bar [1]."


def picture() -> ImagePart:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 60).save(buffer, "PNG")
    return ImagePart(buffer.getvalue(), "image/png")


PICTURE = picture()
TEXT = "Figure 3: Sales by region"
CHART = Hit("report.md", TEXT, 0, len(TEXT), 1, 0.9, {}, image=PICTURE.digest, box=(0.1, 0.2, 0.9, 0.5), page=3)


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collection:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "report.md").write_text(f"{TEXT}\n")
    settings = Settings.model_validate({"ask": {"log": True}})
    collection = Collection.open(tmp_path / "c", settings=settings, embedder=HashingEmbedder())
    collection.sync(tmp_path / "docs")

    def image(_: Collection, key: str) -> ImagePart:
        if key != PICTURE.digest:
            raise CollectionError("There is no such image.")
        return PICTURE

    monkeypatch.setattr(Collection, "image", image)
    return collection


def test_a_reader_with_vision_sees_the_picture(collection: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    reader = ScriptedReader([SEEN], vision=True)
    answer = Rag(collection, reader=reader).ask(QUESTION, hits=[CHART])
    assert reader.prompts[0][-1].images == (PICTURE,)
    (citation,) = answer.citations
    assert (citation.verified, citation.fault) == (False, "picture")
    assert (citation.image, citation.box, citation.page) == (PICTURE.digest, CHART.box, 3)
    assert answer.notes == ()
    assert answer_json(answer)["notes"] == ()
    print_answer(answer)
    assert "read from the picture, which is not checked" in capsys.readouterr().out

    entry = collection.answer_log.entry(answer.log_id or 0)
    assert entry.prompt[-1]["images"] == [PICTURE.digest]
    assert PICTURE.digest in json.dumps(entry.prompt)


def test_a_reader_without_vision_gets_the_text_and_the_answer_says_so(
    collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = ScriptedReader([SEEN])
    answer = Rag(collection, reader=reader).ask(QUESTION, hits=[CHART])
    assert isinstance(reader.prompts[0][-1].content, str)
    assert TEXT in reader.prompts[0][-1].text
    assert answer.notes == (CANNOT_SEE,)
    assert answer_json(answer)["notes"] == (CANNOT_SEE,)
    assert all(citation.fault != "picture" for citation in answer.citations)
    print_answer(answer)
    assert CANNOT_SEE.rstrip(".") in capsys.readouterr().out
    plain = Rag(collection, reader=ScriptedReader(["The sales [1]."])).ask(QUESTION)
    assert plain.notes == ()


def test_a_picture_that_was_removed_is_named(collection: Collection) -> None:
    gone = Hit("report.md", TEXT, 0, len(TEXT), 7, 0.9, {}, image="0" * 32)
    answer = Rag(collection, reader=ScriptedReader([SEEN], vision=True)).ask(QUESTION, hits=[gone])
    assert [(one.chunk_id, "no longer" in one.why) for one in answer.dropped] == [(7, True)]


def test_a_question_may_have_images(collection: Collection) -> None:
    reader = ScriptedReader(["Sales by region [1]."], vision=True)
    rag = Rag(collection, reader=reader)
    history = [Message("user", ("What is this?", PICTURE)), Message("assistant", "A chart.")]
    rag.ask("Does the report have this chart?", images=[PICTURE], history=history)
    assert reader.prompts[-1][-1].images == (PICTURE, PICTURE)
    blind = Rag(collection, reader=ScriptedReader(["Yes."]))
    for options in ({"images": [PICTURE]}, {"history": history}):
        with pytest.raises(UnsupportedError, match="cannot see images"):
            blind.ask(QUESTION, **options)


def test_structured_output_from_pictures(collection: Collection) -> None:
    reader = ScriptedReader(['{"region": "west"}'], vision=True)
    schema = {"type": "object", "properties": {"region": {"type": "string"}}, "required": ["region"]}
    Rag(collection, reader=reader).extract(QUESTION, schema, hits=[CHART])
    assert reader.prompts[-1][-1].images == (PICTURE,)
