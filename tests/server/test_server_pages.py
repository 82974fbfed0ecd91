"""Page images over HTTP, and the page that shows them: access, caching, errors, and the marked words."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import Visit, browsing, expect
from support.figures import commit_figures, document_with_figures, picture
from support.running_server import Running, serve
from support.written_pdf import lines, pdf

from ragfm import Collection, Settings
from ragfm.testing import ScriptedReader

QUOTE = "The pilot boards large ships below the tower."
ANSWER = f"{QUOTE[:-1]} [1]."
PICTURE = picture("walnut")
PAGE = lines("The keeper writes down every ship that passes.", "The pilot boards large ships below", "the tower.")


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with keys, a manual in PDF for all, and a plan in PDF for the group `hr`."""
    folder = tmp_path_factory.mktemp("manual")
    (folder / "docs" / "hr").mkdir(parents=True)
    (folder / "docs" / "manual.pdf").write_bytes(pdf(lines("Contents of the manual"), PAGE))
    (folder / "docs" / "notes.md").write_text("The tower is closed on Sunday.\n")
    (folder / "docs" / "hr" / "plan.pdf").write_bytes(pdf(lines("The walnut plan.")))
    (folder / "docs" / "hr" / ".ragfm-access").write_text("hr")
    Collection.open(folder / "handbook", settings=Settings(), embedder="hashing").sync(folder / "docs")
    commit_figures(
        Collection.open(folder / "handbook"), [document_with_figures("map", {"The walnut map": PICTURE})], allow=["hr"]
    )
    with serve(folder, ScriptedReader([ANSWER]), collection=folder / "handbook") as it:
        yield it


def test_a_page_is_an_image_that_only_its_readers_get(manual: Running) -> None:
    with manual.client("guest") as guest, manual.client("hr") as hr, manual.client(None) as nobody:
        shown = guest.get("/v1/pages/docs/manual.pdf", params={"page": 2, "width": 400})
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
        assert Image.open(io.BytesIO(shown.content)).size == (400, 518)
        assert shown.headers["cache-control"] == "private, no-cache"
        assert shown.headers["vary"] == "authorization"
        assert hr.get("/v1/pages/docs/hr/plan.pdf", params={"page": 1}).status_code == 200
        for path in ("/v1/pages", "/v1/boxes"):
            asked = {"page": 1, "start": 0, "end": 9}
            hidden = guest.get(f"{path}/docs/hr/plan.pdf", params=asked)
            missing = guest.get(f"{path}/docs/hr/plant.pdf", params=asked)
            assert hidden.status_code == missing.status_code == 404
            assert hidden.json()["error"]["code"] == missing.json()["error"]["code"] == "document_not_found"
            assert nobody.get(f"{path}/docs/manual.pdf", params=asked).status_code == 401
            beyond = guest.get(f"{path}/docs/manual.pdf", params={**asked, "page": 3})
            if path == "/v1/pages":
                assert (beyond.status_code, beyond.json()["error"]["code"]) == (404, "page_not_found")
            text = guest.get(f"{path}/docs/notes.md", params=asked)
            assert (text.status_code, text.json()["error"]["code"]) == (400, "unsupported")
        for wrong in ({"page": 0}, {"page": 1, "width": 5000}, {}):
            assert guest.get("/v1/pages/docs/manual.pdf", params=wrong).status_code == 400


def test_a_client_that_has_the_image_gets_304_while_it_may_see_it(manual: Running) -> None:
    with manual.client("hr") as hr, manual.client("guest") as guest:
        tag = hr.get("/v1/pages/docs/hr/plan.pdf", params={"page": 1}).headers["etag"]
        again = hr.get("/v1/pages/docs/hr/plan.pdf", params={"page": 1}, headers={"if-none-match": f'"x", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = hr.get("/v1/pages/docs/hr/plan.pdf", params={"page": 1, "width": 300}, headers={"if-none-match": tag})
        assert other.status_code == 200
        hidden = guest.get("/v1/pages/docs/hr/plan.pdf", params={"page": 1}, headers={"if-none-match": tag})
        assert hidden.status_code == 404


def test_boxes_are_where_the_words_are(manual: Running) -> None:
    with manual.client("guest") as client:
        text = client.get("/v1/documents/docs/manual.pdf").json()["text"]
        asked = {"page": 2, "start": text.index("The pilot"), "end": len(text)}
        found = client.get("/v1/boxes/docs/manual.pdf", params=asked).json()["boxes"]
        baselines = [792 - 720 + 12, 792 - 720 + 24]
        assert [792 * bottom for *_, bottom in found] == pytest.approx(baselines, abs=5)
        assert client.get("/v1/boxes/docs/manual.pdf", params={**asked, "page": 1}).json()["boxes"] == []


def test_a_figure_is_for_those_who_may_read_its_document(manual: Running) -> None:
    with manual.client("hr") as hr, manual.client("guest") as guest:
        (hit, *_) = hr.post("/v1/search", json={"query": "the walnut map", "k": 1}).json()["data"]
        shown = hr.get(f"/v1/images/{hit['image']}")
        assert (shown.content, shown.headers["content-type"]) == (PICTURE, "image/png")
        assert shown.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert shown.headers["content-disposition"] == "attachment"
        hidden, missing = guest.get(f"/v1/images/{hit['image']}"), guest.get(f"/v1/images/{'0' * 32}")
        assert hidden.status_code == missing.status_code == 404
        assert hidden.json()["error"]["code"] == "image_not_found"
        assert guest.get("/v1/images/none").status_code == 400


def test_a_file_that_was_removed_says_nothing_about_the_machine(manual: Running) -> None:
    gone = manual.folder.parent / "docs" / "gone.pdf"  # type: ignore[union-attr]
    gone.write_bytes(pdf(lines("Gone soon.")))
    Collection.open(manual.folder).sync(gone.parent)
    gone.unlink()
    with manual.client("hr") as client:
        lost = client.get("/v1/pages/docs/gone.pdf", params={"page": 1})
        assert (lost.status_code, lost.json()["error"]["code"]) == (409, "page_unavailable")
        assert str(gone.parent) not in lost.text


# --- The page ----------------------------------------------------------------------------------------------------


@pytest.fixture
def open_manual(manual: Running, browser: Any, request: pytest.FixtureRequest) -> Iterator[Visit]:
    visit = Visit(browser, manual.address, **getattr(request, "param", {}))
    visit.page.get_by_role("textbox", name="Key").fill(manual.secrets["hr"])
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("dialog", name="Key").wait_for(state="hidden")
    visit.errors.clear()  # the response that asked for a key
    yield visit
    visit.context.close()


@browsing
@pytest.mark.parametrize(
    "open_manual",
    [{}, {"viewport": {"width": 360, "height": 700}, "color_scheme": "dark", "has_touch": True}],
    indirect=True,
    ids=["desktop", "phone"],
)
def test_the_cited_words_are_marked_on_the_page(open_manual: Visit) -> None:
    page, keys = open_manual.page, open_manual.page.keyboard
    open_manual.ask("Who boards large ships?")
    page.locator("button.cite").first.click()
    button = page.get_by_role("button", name="Show page 2")
    button.focus()
    keys.press("Enter")
    dialog = page.get_by_role("dialog", name="manual.pdf")
    shown = dialog.get_by_role("img", name="Page 2 of manual.pdf, with the cited words marked")
    expect(shown).to_be_visible()
    canvas = shown.bounding_box()
    marks = [rect.bounding_box() for rect in dialog.locator("rect").all()]
    assert len(marks) == 2  # one for each line
    for mark in marks:
        assert canvas["x"] < mark["x"]
        assert mark["x"] + mark["width"] < canvas["x"] + canvas["width"]
    assert (marks[0]["x"] - canvas["x"]) / canvas["width"] == pytest.approx(72 / 612, abs=0.01)
    assert marks[1]["y"] >= marks[0]["y"] + marks[0]["height"] - 1
    expect(dialog.locator("rect").first).to_be_in_viewport()
    assert dialog.evaluate("element => element.scrollWidth <= element.clientWidth")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    faults = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [rule["id"] for rule in faults] == []
    larger = dialog.get_by_role("button", name="Larger")
    larger.focus()
    keys.press("Space")
    expect(larger).to_have_attribute("aria-pressed", "true")
    assert shown.bounding_box()["width"] > 2 * canvas["width"]
    expect(dialog.locator("rect").first).to_be_in_viewport()
    assert dialog.evaluate("element => element.scrollWidth <= element.clientWidth")  # the page scrolls in it
    keys.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    open_manual.all_well()


@browsing
def test_a_page_that_cannot_be_shown_says_why(open_manual: Visit) -> None:
    page = open_manual.page
    page.route("**/v1/pages/**", lambda route: route.fulfill(status=409, json={"error": {"message": "It is away."}}))
    open_manual.ask("Who boards large ships?")
    page.locator("button.cite").first.click()
    page.get_by_role("button", name="Show page 2").click()
    expect(page.get_by_role("dialog", name="manual.pdf").locator(".error")).to_have_text("It is away.")


@browsing
@pytest.mark.slow
def test_a_cited_figure_is_shown_and_marked_on_its_page(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "ragfm.toml").write_text('[parse]\nimages = true\n[ask]\nreranker = "none"\n')
    (tmp_path / "docs" / "ships.png").write_bytes(picture("420 ships passed", (640, 240)))
    assert Collection.open(tmp_path / "handbook", embedder="hashing").sync(tmp_path / "docs").added == 1
    reader = ScriptedReader(["420 ships passed [1]."])
    with serve(tmp_path, reader, keys=False, collection=tmp_path / "handbook") as running:
        visit = Visit(browser, running.address)
        visit.ask("How many ships passed?")
        visit.page.locator("button.cite").first.click()
        expect(visit.page.get_by_role("img", name="Figure in ships.png")).to_be_visible()
        visit.page.get_by_role("button", name="Show page 1").click()
        dialog = visit.page.get_by_role("dialog", name="ships.png")
        expect(dialog.get_by_role("img", name="Page 1 of ships.png, with the cited words marked")).to_be_visible()
        assert dialog.locator("rect.active.figure").count() == 1
        visit.all_well()
        visit.context.close()


@browsing
@pytest.mark.slow
@pytest.mark.parametrize("vision", [True, False])
def test_the_page_says_what_was_read_from_a_picture(tmp_path: Path, browser: Any, vision: bool) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "ragfm.toml").write_text('[parse]\nimages = true\n[ask]\nreranker = "none"\n')
    (tmp_path / "docs" / "ships.png").write_bytes(picture("420 ships passed", (640, 240)))
    Collection.open(tmp_path / "handbook", embedder="hashing").sync(tmp_path / "docs")
    reader = ScriptedReader(["The words are painted in a dark colour [1]."], vision=vision)
    with serve(tmp_path, reader, keys=False, collection=tmp_path / "handbook") as running:
        visit = Visit(browser, running.address)
        visit.ask("How many ships passed?")
        notes = visit.page.locator("p.note")
        cannot_see = "The reader cannot see pictures; figures were used by their text."
        expect(notes.filter(has_text=cannot_see)).to_have_count(0 if vision else 1)
        cited = visit.page.locator("button.cite").first
        expect(cited).to_have_attribute(
            "aria-label", re.compile("read from the picture" if vision else "does not support the sentence")
        )
        cited.click()
        why = "The answer was read from the picture, which is not checked."
        expect(visit.page.get_by_text(why)).to_have_count(1 if vision else 0)
        visit.all_well()
        visit.context.close()
