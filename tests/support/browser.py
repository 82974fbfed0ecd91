"""Chromium with the page of a local server, and documents and a reader that attack the page."""

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
    reason="NOT TESTED: needs Chromium (apt-get install chromium) and playwright (pip install -e '.[dev]')",
)

ANSWER = "You get 28 days of leave [1]. Parents get 16 weeks more [1]. Cats get 99 weeks."
ATTACK = (
    """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
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
"""
    + "x" * 300
)
EVIL_NAME = '<img src=x onerror="window.hacked=5">.md'


class Actor(ScriptedReader):
    """Attacks on `ATTACK`, answers slowly on `SLOWLY`, and gives a normal answer to other questions."""

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
    """A server without keys, with an answer log. One of its documents is an attack."""
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


def expect(target: Any) -> Any:
    """Playwright's assertions, which wait until they hold."""
    from playwright.sync_api import expect

    return expect(target)


class Visit:
    """A browser window with the page. Records requests and errors."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._record_error)
        self.page.goto(address)
        self.address = address

    def _record_error(self, message: Any) -> None:
        """Record an error. `/readyz` answers 503 while the models load, which is expected."""
        if message.type == "error" and not message.location["url"].endswith("/readyz"):
            self.errors.append(message.text)

    def ask(self, question: str, *, wait: bool = True) -> None:
        self.page.get_by_label("Your question").fill(question)
        self.page.keyboard.press("Enter")
        if wait:
            self.page.locator(".turn").last.locator(".tools").wait_for()

    def all_well(self) -> None:
        """Assert that there were no requests to other hosts, no errors and no foreign scripts."""
        assert {f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in self.requests} == {self.address}
        assert self.errors == [], self.errors
        assert self.page.evaluate("window.hacked") is None


@pytest.fixture
def visit(browser: Any, open_server: Running) -> Iterator[Visit]:
    visit = Visit(browser, open_server.address)
    yield visit
    visit.context.close()
