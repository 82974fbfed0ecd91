"""Images of figures: stored once, read only through a document that is visible, and deleted with the last one."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.figures import commit_figures, document_with_figures, picture
from support.written_pdf import lines, pdf

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionError
from ragfm.core.types import image_key
from ragfm.maintenance.salvage import salvage
from ragfm.store.catalog import Catalog
from ragfm.store.tables import documents, images
from ragfm.testing import HashingEmbedder

CHART, PHOTO, SECRET = (picture(text) for text in ("chart", "photo", "walnut"))


def _count(collection: Collection) -> int:
    return collection.store.catalog.image_sizes(collection.status().generation)[0]


@pytest.mark.both_databases
def test_a_figure_is_a_hit_with_its_image_and_place(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", {"Revenue by quarter": CHART, "The new office": PHOTO})])
    hits = collection.search("Revenue by quarter", 5)
    assert hits[0].text == "Revenue by quarter"
    assert (hits[0].image, hits[0].box, hits[0].page) == (image_key(CHART), (0.1, 0.0, 0.9, 0.1), 1)
    assert hits[0].headings == ("About a",)
    image = collection.image(image_key(CHART))
    assert (image.data, image.media_type) == (CHART, "image/png")
    text_hit = next(hit for hit in hits if "paragraph" in hit.text)
    assert (text_hit.image, text_hit.box) == (None, None)
    with collection._store.catalog.read() as connection:
        (marks,) = connection.execute(sa.select(documents.c.marks)).scalars()
    assert {len(values) for values in marks} == {5}


@pytest.mark.both_databases
def test_an_image_is_visible_with_a_document_that_has_it(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("open", {"Revenue": CHART})])
    commit_figures(collection, [document_with_figures("closed", {"Walnut": SECRET})], name="closed", allow=["board"])
    outsider, member = collection.as_groups({"sales"}), collection.as_groups({"board"})
    assert outsider.image(image_key(CHART)).data == CHART
    assert member.image(image_key(SECRET)).data == collection.image(image_key(SECRET)).data == SECRET
    for key in (image_key(SECRET), "0" * 32, "'; DROP TABLE images"):
        with pytest.raises(CollectionError, match="no image"):
            outsider.image(key)
    # The same picture in an open document opens it.
    commit_figures(collection, [document_with_figures("open", {"Leaked": SECRET})])
    assert outsider.image(image_key(SECRET)).data == SECRET
    with pytest.raises(CollectionError, match="no image"):  # the version that had it was replaced
        outsider.image(image_key(CHART))


@pytest.mark.both_databases
def test_the_status_counts_visible_images(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("open", {"Revenue": CHART})])
    commit_figures(collection, [document_with_figures("closed", {"Walnut": SECRET})], name="closed", allow=["board"])
    status, outsider = collection.status(), collection.as_groups(set()).status()
    assert (status.images, status.image_bytes) == (2, len(CHART) + len(SECRET))
    assert (outsider.images, outsider.image_bytes) == (1, len(CHART))


@pytest.mark.both_databases
def test_an_image_is_stored_once_and_deleted_with_its_last_document(collection: Collection) -> None:
    documents = [document_with_figures(uri, {"Revenue": CHART, "Office": PHOTO}) for uri in ("a", "b")]
    commit_figures(collection, documents)
    assert _count(collection) == 2
    commit_figures(collection, [document_with_figures("b", {})])
    assert collection.compact().images == 0
    commit_figures(collection, [document_with_figures("a", {"Office": PHOTO})])
    assert collection.compact().images == 1
    assert collection.image(image_key(PHOTO)).data == PHOTO
    with collection._store.catalog.read() as connection:
        assert connection.execute(sa.select(images.c.hash)).scalars().all() == [image_key(PHOTO)]


@pytest.mark.both_databases
def test_a_damaged_and_a_missing_image_are_found(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", {"Revenue": CHART}), document_with_figures("b", {})])
    assert not collection.verify().damaged
    with collection._store.writing() as catalog, catalog.write() as connection:
        connection.execute(images.update().values(data=PHOTO))
    report = collection.verify()
    assert report.lost == ("a",)
    assert f"the hash of the image {image_key(CHART)} of a" in report.findings[0].what
    with pytest.raises(CollectionError, match="does not match its hash"):
        collection.image(image_key(CHART))
    with collection._store.writing() as catalog, catalog.write() as connection:
        connection.execute(images.delete())
    assert [finding.found for finding in collection.verify().findings] == ["missing"]


@pytest.mark.both_databases
def test_reembedding_keeps_figures(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", {"Revenue by quarter": CHART})])
    collection.reembed(HashingEmbedder(dim=32))
    (hit, *_) = collection.search("Revenue by quarter")
    assert (hit.image, hit.box) == (image_key(CHART), (0.1, 0.0, 0.9, 0.1))
    assert not collection.verify().damaged


def test_backup_salvage_and_export_have_the_images(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder())
    commit_figures(collection, [document_with_figures("a", {"Revenue": CHART})])
    collection.backup(tmp_path / "backup")
    restored = Collection.open(tmp_path / "restored", settings=Settings(), embedder=HashingEmbedder())
    restored.restore(tmp_path / "backup")
    salvage(collection.store, tmp_path / "saved")
    saved = Collection.open(tmp_path / "saved", settings=Settings(), embedder=HashingEmbedder())
    for copy in (restored, saved):
        assert copy.image(image_key(CHART)).data == CHART
        assert copy.search("Revenue")[0].box == (0.1, 0.0, 0.9, 0.1)
        assert not copy.verify().damaged
    out = BytesIO()
    collection.export(out)
    record = json.loads(out.getvalue())
    assert [image["hash"] for image in record["images"]] == [image_key(CHART)]
    assert [chunk["image"] for chunk in record["chunks"]] == [None, image_key(CHART)]
    assert b64decode(record["images"][0]["data"]) == CHART
    assert record["chunks"][1]["box"] == [0.1, 0.0, 0.9, 0.1]


def test_a_copy_has_the_images(tmp_path: Path, address: str) -> None:
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder())
    commit_figures(collection, [document_with_figures("a", {"Revenue": CHART})])
    collection.copy(address)
    server = Collection.open(address, settings=Settings(), embedder=HashingEmbedder())
    assert server.search("Revenue")[0].box == (0.1, 0.0, 0.9, 0.1)
    server.copy(tmp_path / "back")
    back = Collection.open(tmp_path / "back", settings=Settings(), embedder=HashingEmbedder())
    assert server.image(image_key(CHART)).data == back.image(image_key(CHART)).data == CHART


def test_policies_hide_images_without_conditions(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Collection.open(address, settings=Settings(), embedder=HashingEmbedder())
    commit_figures(collection, [document_with_figures("closed", {"Walnut": SECRET})], allow=["board"])
    monkeypatch.setattr("ragfm.store.filters.visible_to", lambda _: sa.true())
    assert collection.as_groups({"board"}).image(image_key(SECRET)).data == SECRET
    with pytest.raises(CollectionError, match="no image"):
        collection.as_groups({"sales"}).image(image_key(SECRET))
    with Catalog(collection._store.database).restricted_to(frozenset()).read() as connection:
        assert connection.execute(sa.select(images)).all() == []


def test_collections_of_text_load_no_library_for_images(tmp_path: Path, docs: Path) -> None:
    code = f"""
import sys
from ragfm import Collection, Settings
from ragfm.testing import HashingEmbedder
from ragfm.maintenance.salvage import salvage
collection = Collection.open({str(tmp_path / ".ragfm")!r}, settings=Settings(), embedder=HashingEmbedder())
collection.sync({str(docs)!r})
assert collection.search("leave")[0].image is None
print(*sorted({{"PIL", "pypdfium2", "rapidocr", "torch"}} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_the_setting_parses_only_documents_with_figures_again(tmp_path: Path, docs: Path) -> None:
    picture = "q 190 0 0 140 140 400 cm BI /W 2 /H 1 /CS /G /BPC 8 ID \x40\xee EI Q "
    caption = lines("Fig. 3: Sales of walnuts", x=140, y=365, size=9)
    (docs / "sales.pdf").write_bytes(pdf(lines("The walnut report has a picture.", y=700) + picture + caption))
    (docs / "page.html").write_text("<p>A page without pictures.")

    def opened(images: bool) -> Collection:
        settings = Settings(parse={"images": images})
        return Collection.open(tmp_path / ".ragfm", settings=settings, embedder=HashingEmbedder())

    assert opened(images=False).sync(docs).added == 6
    with opened(images=True) as collection:
        report = collection.sync(docs)
        assert (report.updated, report.unchanged) == (2, 4)  # the PDF and the HTML page
        (hit, *_) = collection.search("Fig. 3: Sales of walnuts")
        assert hit.text.startswith("Fig. 3: Sales of walnuts")
        assert hit.page == 1
        assert hit.image is not None
        assert collection.image(hit.image).media_type == "image/png"
        assert collection.sync(docs).unchanged == 6
    with opened(images=False) as collection:
        assert collection.sync(docs).updated == 2
        assert collection.status().images == 0
        assert collection.compact().images == 1
