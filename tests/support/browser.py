"""Chromium at the page of a server over loopback, and documents and a reader that attack it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import pytest

from ragfm import Collection, Settings
from ragfm.core.types import Message, Sampling, Stream
from ragfm.testing import ScriptedReader
from support.running_server import Running, SlowReader, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browsing = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="NOT TESTED: it takes Chromium (apt-get install chromium) and playwright (pip install 'ragfm[dev]')",
)

ANSWER = "You get 28 days of leave [1]. Parents get 16 weeks more [1]. Cats get 99 weeks."
ATTACK = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
![picture](https://evil.example/pixel.png) and [a link](javascript:window.hacked=3) [data](data:text/html,<script>1)

# <iframe src="https://evil.example"></iframe>
[site](https://evil.example/?q=secret) <https://evil.example/auto> https://evil.example/bare. [1]

- **<svg onload="window.hacked=4">** `<style>@import "https://evil.example/a.css"</style>`

| a | <link rel=stylesheet href=https://evil.example/b.css> |
|---|---|
| ![x](https://evil.example/cell.png) | 28 days of leave [1] |

```html
<object data="https://evil.example"></object>
```
""" + "x" * 300  # fmt: skip
EVIL_NAME = '<img src=x onerror="window.hacked=5">.md'


class Actor(ScriptedReader):
    """Attacks where it is asked to, takes its time where it is asked to, else answers."""

    def __init__(self) -> None:
        super().__init__(lambda messages: ATTACK if "ATTACK" in messages[-1].content else ANSWER)
        self.slow = SlowReader()
        self.slots = 2

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        return (self.slow if "SLOWLY" in messages[-1].content else super()).stream(messages, sampling)


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor()


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, actor: Actor) -> Iterator[Running]:
    """Without keys, over documents one of which attacks; it keeps a log."""
    folder = tmp_path_factory.mktemp("page")
    docs = folder / "docs"
    docs.mkdir()
    (docs / "leave.md").write_text("# Leave 🌴\n\nYou get 28 days of leave 🎈.\n\nParents get 16 weeks more.\n")
    (docs / EVIL_NAME).write_text(f"# attack\n\nThe attack on leave: {ATTACK}")
    (folder / "ragfm.toml").write_text("[ask]\nlog = true\n")
    Collection.open(folder / "handbook", settings=Settings(), embedder="hashing").sync(docs)
    with serve(folder, actor, keys=False, collection=folder / "handbook") as it:
        yield it


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def expect(what: Any) -> Any:
    """Playwright's assertions, which wait until they hold."""
    from playwright.sync_api import expect

    return expect(what)


class Visit:
    """A browser's window at a server, with all that it asked for and all that went wrong."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(address)
        self.address = address

    def _hear(self, said: Any) -> None:
        """Keep errors; that the models are still being loaded is none."""
        if said.type == "error" and not said.location["url"].endswith("/readyz"):
            self.errors.append(said.text)

    def ask(self, question: str, *, wait: bool = True) -> None:
        self.page.get_by_label("Your question").fill(question)
        self.page.keyboard.press("Enter")
        if wait:
            self.page.locator(".turn").last.locator(".tools").wait_for()

    def all_well(self) -> None:
        """Nothing was asked of anybody else, nothing failed, no script ran that isn't the page's own."""
        assert {f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in self.requests} == {self.address}
        assert self.errors == [], self.errors
        assert self.page.evaluate("window.hacked") is None


@pytest.fixture
def visit(browser: Any, open_server: Running) -> Iterator[Visit]:
    visit = Visit(browser, open_server.address)
    yield visit
    visit.context.close()
