"""Page images and boxes of quotes through a collection: current files only, and only for those who may read them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.website import serve
from support.written_pdf import lines, pdf

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionError, ConnectorError, UnsupportedError
from ragfm.ingestion import page_images
from ragfm.ingestion.page_images import _Cache

TEXT = ("The keeper writes down every ship.", "The pilot waits below the tower.")
MARKED = "0 0 1 rg 300 100 200 200 re f 0 g "  # a blue square that only this document has


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_images, "_cache", _Cache())


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    (docs / "board").mkdir(parents=True)
    (docs / "log.pdf").write_bytes(pdf(lines("Contents"), lines(*TEXT)))
    (docs / "notes.md").write_text("# Notes\n\nNo pages here.\n")
    (docs / "board" / "plan.pdf").write_bytes(pdf(lines("The walnut plan.") + MARKED))
    (docs / "board" / ".ragfm-access").write_text("board")
    return docs


@pytest.fixture
def collection(docs: Path, tmp_path: Path) -> Collection:
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder="hashing")
    assert not collection.sync(docs).failed
    return collection


def test_a_page_and_the_box_of_a_quote(collection: Collection) -> None:
    image = Image.open(io.BytesIO(collection.page_image("docs/log.pdf", 2, width=612)))
    assert image.size == (612, 792)
    (hit,) = collection.search("the pilot waits", 1)
    assert hit.page == 2
    start = collection.document("docs/log.pdf").text.index(TEXT[1])
    ((left, top, right, bottom),) = collection.page_boxes("docs/log.pdf", 2, start, start + len(TEXT[1]))
    assert left == pytest.approx(72 / 612, abs=0.002)
    ink = image.convert("L").point(lambda value: 255 * (value < 128)).getbbox()  # both lines
    assert ink is not None
    assert 612 * right == pytest.approx(ink[2], abs=70)
    assert 792 * bottom == pytest.approx(ink[3], abs=4)
    assert 792 * top > ink[1] + 6
    assert collection.page_boxes("docs/log.pdf", 1, start, start + 5) == []  # it is on another page


def test_the_box_of_a_figure_is_its_place_on_the_page(docs: Path, tmp_path: Path) -> None:
    picture = "q 190 0 0 140 140 400 cm BI /W 1 /H 1 /CS /RGB /BPC 8 ID \x00\x00\xff EI Q "
    caption = lines("Fig. 3: Ships by year", x=140, y=380, size=9)
    (docs / "chart.pdf").write_bytes(pdf(lines(*TEXT) + picture + caption))
    settings = Settings(parse={"images": True})
    collection = Collection.open(tmp_path / "figures", settings=settings, embedder="hashing")
    collection.sync(docs)
    (hit,) = collection.search("ships by year", 1)
    assert (hit.uri, hit.page) == ("docs/chart.pdf", 1)
    assert hit.box is not None
    page = Image.open(io.BytesIO(collection.page_image(hit.uri, 1, width=612)))
    left, top, right, bottom = (round(side * at) for side, at in zip((612, 792, 612, 792), hit.box, strict=True))
    rows, columns = np.nonzero((np.asarray(page) == (0, 0, 255)).all(axis=2))
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max(), rows.max()
    assert left <= x0 < x1 <= right
    assert top <= y0 < y1 <= bottom
    assert (right - left) * (bottom - top) < 2 * (x1 - x0) * (y1 - y0)


def test_what_cannot_be_shown_says_why(collection: Collection) -> None:
    with pytest.raises(UnsupportedError, match=r"'docs/notes\.md' has no pages to show\. PDF documents"):
        collection.page_image("docs/notes.md", 1)
    with pytest.raises(CollectionError, match=r"There is no page 9 in docs/log\.pdf\. It has 2\."):
        collection.page_image("docs/log.pdf", 9)
    with pytest.raises(CollectionError, match="There is no document"):
        collection.page_image("docs/none.pdf", 1)
    with pytest.raises(ValueError, match="width is 99; it must be between 100 and 2400"):
        collection.page_image("docs/log.pdf", 1, width=99)


def test_only_the_indexed_version_of_a_file_is_shown(collection: Collection, docs: Path) -> None:
    (docs / "log.pdf").write_bytes(pdf(lines("Other contents")))
    with pytest.raises(ConnectorError, match=r"has changed since it was indexed\. Run `ragfm ingest`\."):
        collection.page_image("docs/log.pdf", 1)
    (docs / "log.pdf").unlink()
    with pytest.raises(ConnectorError, match=r"The file of 'docs/log\.pdf' cannot be read: .*No such file"):
        collection.page_boxes("docs/log.pdf", 1, 0, 5)


def test_pages_are_as_closed_as_their_text(collection: Collection, docs: Path) -> None:
    secret = collection.as_groups({"board"}).page_image("docs/board/plan.pdf", 1)
    assert (0, 0, 255) in {color for _, color in Image.open(io.BytesIO(secret)).getcolors(1 << 24) or ()}
    for groups in (set[str](), {"hr"}):  # after it was rendered and cached, too
        handle = collection.as_groups(groups)
        with pytest.raises(CollectionError, match="There is no document"):
            handle.page_image("docs/board/plan.pdf", 1)
        with pytest.raises(CollectionError, match="There is no document"):
            handle.page_boxes("docs/board/plan.pdf", 1, 0, 9)
        assert handle.page_image("docs/log.pdf", 1)
    # A file that was closed after the last ingest is not read on behalf of the groups that it was open to.
    (docs / "board" / "minutes.pdf").write_bytes(pdf(lines("The minutes.")))
    collection.sync(docs)
    (docs / "board" / ".ragfm-access").write_text("owner")
    with pytest.raises(ConnectorError, match="has been closed to a group"):
        collection.as_groups({"board"}).page_image("docs/board/minutes.pdf", 1)


def test_cached_pages_do_not_tell_what_other_groups_have_seen(
    collection: Collection, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    render = page_images.render_page

    def count(data: bytes, media_type: str, uri: str, page: int, width: int) -> bytes:
        rendered.append(uri)
        return render(data, media_type, uri, page, width)

    monkeypatch.setattr(page_images, "render_page", count)
    other = Collection.open(tmp_path / "other", settings=Settings(), embedder="hashing")
    other.sync(docs)
    handles = [collection, collection.as_groups({"hr"}), collection.as_groups({"it"}), other.as_groups({"hr"})]
    images = {handle.page_image("docs/log.pdf", 1, width=200) for handle in handles}
    assert len(images) == 1
    assert len(rendered) == len(handles), "each for itself"
    collection.as_groups({"hr"}).page_image("docs/log.pdf", 1, width=200)
    assert len(rendered) == len(handles), "users with the same groups share them"


def test_files_and_images_are_kept_up_to_a_limit(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = collection.page_image("docs/log.pdf", 1)
    (docs / "log.pdf").unlink()
    assert collection.page_image("docs/log.pdf", 1) == first
    assert collection.page_image("docs/log.pdf", 2)  # from the file that was kept
    monkeypatch.setattr(page_images, "_MAX_CACHED", len(first) // 2)  # less than any image of this width
    assert collection.page_image("docs/board/plan.pdf", 1)  # its file pushes out all others
    with pytest.raises(ConnectorError, match="cannot be read"):
        collection.page_image("docs/log.pdf", 1)


@pytest.fixture(params=["folder", pytest.param("postgres", marks=pytest.mark.slow)])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    return tmp_path / "uploads" if request.param == "folder" else request.getfixturevalue("address")


def test_pages_of_uploads_come_from_the_collection(location: str | Path, docs: Path) -> None:
    with Collection.open(location, settings=Settings(), embedder="hashing") as collection:
        collection.sync(docs)
        uploads = collection.store.open_uploads()
        stored = uploads.store(io.BytesIO(pdf(lines(*TEXT))), "log.pdf", ["key:ann"])
        collection.sync(uploads.source, name=".uploads")
        assert collection.as_groups({"key:ann"}).page_image(stored.uri, 1, width=300).startswith(b"\x89PNG")
        with pytest.raises(CollectionError, match="There is no document"):
            collection.as_groups({"key:bob"}).page_image(stored.uri, 1, width=300)


def _zip(folder: Path, data: bytes) -> str:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.writestr("log.pdf", data)
    return str(folder)


def _mail(folder: Path, data: bytes) -> str:
    message = EmailMessage()
    message["Subject"] = "The log"
    message.set_content("See the attachment.")
    message.add_attachment(data, maintype="application", subtype="pdf", filename="log.pdf")
    (folder / "one.eml").write_bytes(message.as_bytes())
    return str(folder)


def _git(folder: Path, data: bytes) -> str:
    porcelain = pytest.importorskip("dulwich.porcelain", reason="needs the extra git")
    (folder / "log.pdf").write_bytes(data)
    porcelain.init(str(folder))
    porcelain.add(str(folder), [str(folder / "log.pdf")])
    porcelain.commit(str(folder), message=b"first", author=b"a <a@b>", committer=b"a <a@b>")
    return str(folder)


@pytest.mark.parametrize(("connector", "make"), [("files", _zip), ("mail", _mail), ("git", _git)])
def test_every_connector_fetches_the_file_again(
    connector: str, make: Callable[[Path, bytes], str], tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder="hashing")
    collection.sync(make(folder, pdf(lines(*TEXT))), connector=connector)
    (info,) = collection.documents("media_type = 'application/pdf'") or collection.documents()
    reopened = Collection.open(tmp_path / ".ragfm", settings=Settings())
    assert reopened.page_image(info.uri, 1, width=200).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_web_server_is_asked_again(tmp_path: Path) -> None:
    pytest.importorskip("urllib3", reason="needs the extra web")
    with serve() as site:
        site.page("/log.pdf", pdf(lines(*TEXT)), Content_Type="application/pdf")
        collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder="hashing")
        assert collection.sync(site.url("/log.pdf"), options={"allow_hosts": ["127.0.0.1"]}).added == 1
        uri = collection.documents()[0].uri
        assert collection.page_image(uri, 1, width=200).startswith(b"\x89PNG")
        site.page("/log.pdf", status=404)
        assert collection.page_image(uri, 1, width=300)  # from the file that was kept
        page_images._cache = _Cache()
        with pytest.raises(ConnectorError, match="responded with status 404"):
            collection.page_image(uri, 1)
