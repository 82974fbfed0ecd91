"""Answers from figures: by their pictures with a reader that sees, by their text with one that does not."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.figures import commit_figures, document_with_figures

from ragfm import Collection, Rag, Settings
from ragfm.cli.output import answer_json, print_answer
from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Hit, ImagePart, Message
from ragfm.rag import CANNOT_SEE
from ragfm.testing import HashingEmbedder, ScriptedReader

QUESTION = "Which region sold most?"
SEEN = "The western region is shown as the tallest bar [1]."


def noise(seed: int = 0) -> ImagePart:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImagePart(buffer.getvalue(), "image/png")


PICTURE, SECRET = noise(), noise(1)
CAPTION = "Figure 3: Sales by region"
SETTINGS = Settings.model_validate({"ask": {"log": True, "reranker": "none"}, "parse": {"images": True}})


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("pictures") / "c"
    collection = Collection.open(folder, settings=SETTINGS, embedder=HashingEmbedder())
    commit_figures(collection, [document_with_figures("report", {CAPTION: PICTURE.data})])
    secret = document_with_figures("plan", {"Figure 9: Which region to sell": SECRET.data})
    commit_figures(collection, [secret], name="board", allow=["board"])
    return collection


def figure(collection: Collection) -> Hit:
    return next(hit for hit in collection.search(QUESTION) if hit.image == PICTURE.digest)


def test_a_reader_with_vision_sees_the_picture(collection: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    reader = ScriptedReader([SEEN], vision=True)
    chart = figure(collection)
    answer = Rag(collection, reader=reader).ask(QUESTION, hits=[chart])
    assert reader.prompts[0][-1].images == (PICTURE,)
    (citation,) = answer.citations
    assert (citation.verified, citation.fault) == (False, "picture")
    assert (citation.image, citation.page, citation.box) == (PICTURE.digest, 1, (0.1, 0.0, 0.9, 0.1))
    assert answer.notes == ()
    assert answer_json(answer)["notes"] == ()
    print_answer(answer)
    assert "read from the picture, which is not checked" in capsys.readouterr().out

    entry = collection.answer_log.entry(answer.log_id or 0)
    assert entry.prompt[-1]["images"] == [PICTURE.digest]


def test_a_question_finds_pictures_that_its_user_may_see(collection: Collection) -> None:
    for handle, pictures in [(collection, {PICTURE, SECRET}), (collection.as_groups(()), {PICTURE})]:
        reader = ScriptedReader([SEEN], vision=True)
        answer = Rag(handle, reader=reader).ask(QUESTION)
        assert set(reader.prompts[0][-1].images) == pictures
        assert {hit.image for hit in answer.hits if hit.n and hit.image} == {image.digest for image in pictures}


def test_a_reader_without_vision_gets_the_text_and_the_answer_says_so(
    collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = ScriptedReader([SEEN])
    answer = Rag(collection, reader=reader).ask(QUESTION)
    assert isinstance(reader.prompts[0][-1].content, str)
    assert CAPTION in reader.prompts[0][-1].text
    assert answer.notes == (CANNOT_SEE,)
    assert answer_json(answer)["notes"] == (CANNOT_SEE,)
    assert all(citation.fault != "picture" for citation in answer.citations)
    print_answer(answer)
    assert CANNOT_SEE.rstrip(".") in capsys.readouterr().out
    text = next(hit for hit in collection.search("A paragraph before the figures.") if not hit.image)
    plain = Rag(collection, reader=ScriptedReader(["A paragraph [1]."])).ask("What is before the figures?", hits=[text])
    assert plain.notes == ()


def test_a_picture_that_was_removed_is_named(collection: Collection) -> None:
    gone = replace(figure(collection), image="0" * 32)
    answer = Rag(collection, reader=ScriptedReader([SEEN], vision=True)).ask(QUESTION, hits=[gone])
    assert [(one.chunk_id, "no longer" in one.why) for one in answer.dropped] == [(gone.chunk_id, True)]


def test_a_question_may_have_images(collection: Collection) -> None:
    reader = ScriptedReader(["Sales by region [1]."], vision=True)
    history = [Message("user", ("What is this?", SECRET)), Message("assistant", "A chart.")]
    Rag(collection.as_groups(()), reader=reader).ask("Does the report have it?", images=[SECRET], history=history)
    assert reader.prompts[-1][-1].images == (PICTURE, SECRET, SECRET)  # the passage's, and the user's own
    blind = Rag(collection, reader=ScriptedReader(["Yes."]))
    for options in ({"images": [PICTURE]}, {"history": history}):
        with pytest.raises(UnsupportedError, match="cannot see images"):
            blind.ask(QUESTION, **options)


def test_structured_output_from_pictures(collection: Collection) -> None:
    reader = ScriptedReader(['{"region": "west"}'], vision=True)
    schema = {"type": "object", "properties": {"region": {"type": "string"}}, "required": ["region"]}
    Rag(collection, reader=reader).extract(QUESTION, schema, hits=[figure(collection)])
    assert reader.prompts[-1][-1].images == (PICTURE,)


@pytest.mark.slow
def test_a_figure_of_a_web_page_reaches_the_reader(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    url = f"data:image/png;base64,{b64encode(PICTURE.data).decode()}"
    figure = f"<figure><img src='{url}'><figcaption>{CAPTION}</figcaption></figure>"
    (tmp_path / "docs" / "report.html").write_text(f"<h1>Report</h1><p>The year was dry.</p>{figure}")
    collection = Collection.open(tmp_path / "c", settings=SETTINGS, embedder=HashingEmbedder())
    collection.sync(tmp_path / "docs")
    reader = ScriptedReader([SEEN], vision=True)
    answer = Rag(collection, reader=reader).ask(QUESTION)
    assert reader.prompts[0][-1].images == (PICTURE,)
    assert [(one.fault, one.image) for one in answer.citations] == [("picture", PICTURE.digest)]
