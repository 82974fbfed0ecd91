"""The page: safe rendering of texts, accessibility and themes."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from support.browser import Visit, browsing, expect
from support.running_server import Running

AWAY = 'target="_blank" rel="noopener noreferrer nofollow"'
UNSUPPORTED = '<span class="hidden">Unsupported: </span>'
WORDS = '<span class="doubt">'
DOUBT = f"{UNSUPPORTED}{WORDS}"
TABLE = '<div class="wide" tabindex="0" role="group" aria-label="Table"><table><thead>'

# Texts by their HTML. `{1}` is a citation, `{` and `}` the start and end of unsupported words.
MARKDOWN = {
    # Inline
    "a *b* **c _d_** ~~e~~ `f*g*`": "<p>a <em>b</em> <strong>c <em>d</em></strong> <del>e</del> <code>f*g*</code></p>",
    "snake_case_name 2*3*4 * a * \\*b\\* **open": "<p>snake_case_name 2<em>3</em>4 * a * *b* **open</p>",
    "***a** b* __c__ *d **e***": (
        "<p><em><strong>a</strong> b</em> <strong>c</strong> <em>d <strong>e</strong></em></p>"
    ),
    "``a`b`` `open": "<p><code>a`b</code> `open</p>",
    "a  \nb\\\nc\nd": "<p>a<br>b<br>c\nd</p>",
    "&lt;b&gt; &amp;amp; &copy; &#65;&#x42; &unknown;": "<p>&lt;b&gt; &amp;amp; © AB &amp;unknown;</p>",
    "[t](https://a.example/x_(y)) [u](ftp://b.example) ![p](http://c.example)": (
        f'<p><a href="https://a.example/x_(y)" {AWAY}>t</a><span class="target"> (https://a.example/x_(y))</span> '
        f'u (ftp://b.example) <a href="http://c.example/" {AWAY}>p</a><span class="target"> (http://c.example)</span></p>'
    ),
    "https://a.example, <http://b.example> c@d.example": (
        f'<p><a href="https://a.example/" {AWAY}>https://a.example</a>, '
        f'<a href="http://b.example/" {AWAY}>http://b.example</a> c@d.example</p>'
    ),
    "[*t*][r] [x]\n\n[r]: https://a.example": (
        f'<p><a href="https://a.example/" {AWAY}><em>t</em></a><span class="target"> (https://a.example)</span> [x]</p>'
        "<p>[r]: https://a.example</p>"
    ),
    "[a](javascript:b) [c](data:text/html,d) [e](JaVaScRiPt&#58;f)": (
        "<p>a (javascript:b) c (data:text/html,d) e (JaVaScRiPt:f)</p>"
    ),
    "a <b>c</b> & <!-- d --> [1] [x]": "<p>a &lt;b&gt;c&lt;/b&gt; &amp; &lt;!-- d --&gt; [1] [x]</p>",
    "<div onclick='a'>\n\n*b*\n\n</div>": "<p>&lt;div onclick='a'&gt;</p><p><em>b</em></p><p>&lt;/div&gt;</p>",
    # Blocks
    "1. a\n2. b\n   - c\n\n     d\n3. e": ("<ol><li>a</li><li>b<ul><li><p>c</p><p>d</p></li></ul></li><li>e</li></ol>"),
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "7) a\n- b": '<ol start="7"><li>a</li></ol><ul><li>b</li></ul>',
    "- [x] a\n- [ ] b": "<ul><li>☑ a</li><li>☐ b</li></ul>",
    "# H\ntext\nmore\n***\n> q\n> - r": (
        "<h3>H</h3><p>text\nmore</p><hr><blockquote><p>q</p><ul><li>r</li></ul></blockquote>"
    ),
    "A\n===\nB\n---\n###### C ##": "<h3>A</h3><h4>B</h4><h6>C</h6>",
    "```py\na <b>\n# x\n```\nz": '<pre tabindex="0"><code>a &lt;b&gt;\n# x</code></pre><p>z</p>',
    "~~~\n```\n~~~\n\n    a\n      b": (
        '<pre tabindex="0"><code>```</code></pre><pre tabindex="0"><code>a\n  b</code></pre>'
    ),
    "|a|b|\n|-|-|\n|1 \\| 2|**3**|\n|4|": (
        f"{TABLE}<tr><th>a</th><th>b</th></tr></thead><tbody>"
        "<tr><td>1 | 2</td><td><strong>3</strong></td></tr><tr><td>4</td><td></td></tr></tbody></table></div>"
    ),
    # Citations
    "*a*{1} _b_{2}{1}. **c{1}** `d{2}`": (
        "<p><em>a</em>(1) <em>b</em>(2)(1). <strong>c(1)</strong> <code>d[2]</code></p>"
    ),
    "{1}: https://a.example{2} Yes!{1} [b{1}](https://c.example)": (
        f'<p>(1): <a href="https://a.example/" {AWAY}>https://a.example</a>(2) Yes!(1) '
        f'<a href="https://c.example/" {AWAY}>b[1]</a><span class="target"> (https://c.example)</span></p>'
    ),
    "|a|b|\n|-|-|\n|1|2| {1}{2}": (
        f"{TABLE}<tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2 (1)(2)</td></tr></tbody></table></div>"
    ),
    # Unsupported sentences
    "{- a `b`\n  {- c}": f"<ul><li>{DOUBT}a </span><code>b</code><ul><li>{DOUBT}c</span></li></ul></li></ul>",
    "{> - _a_}\n\n{_b_} c": (
        f"<blockquote><ul><li>{UNSUPPORTED}<em>{WORDS}a</span></em></li></ul></blockquote>"
        f"<p>{UNSUPPORTED}<em>{WORDS}b</span></em> c</p>"
    ),
    "{```\nx}\n```\ny {[t](b) z}": f'<pre tabindex="0"><code>x</code></pre><p>y {DOUBT}t (b) z</span></p>',
    "```\nx\n```}\ny": '<pre tabindex="0"><code>x</code></pre><p>y</p>',
    "{|a|}\n{|-|\n|{0}| {1}}\n\nz": (
        f"{TABLE}<tr><th>{DOUBT}a</span></th></tr></thead><tbody>"
        f"<tr><td>{UNSUPPORTED}(0){WORDS} </span>(1)</td></tr></tbody></table></div><p>z</p>"
    ),
}


# --- Looks -------------------------------------------------------------------------------------------------------


@browsing
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_at_any_width(browser: Any, open_server: Running, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = Visit(browser, open_server.address, color_scheme=scheme, viewport={"width": 360, "height": 740})
    page = visit.page

    def look(where: str) -> None:
        found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        faults = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]
        assert faults == [], where
        wide = "[document.documentElement, ...document.querySelectorAll('#turns, #sources, dialog[open] .body')]"
        assert page.evaluate(f"{wide}.filter((part) => part.scrollWidth > part.clientWidth).length") == 0, (
            f"{where} is too wide"
        )

    look("the beginning")
    visit.ask("Tell me of the ATTACK on leave")
    visit.ask("How many days of leave do I get?")
    look("an answer")
    page.locator("button.cite").last.click()
    look("the sources")
    page.get_by_role("button", name="Show in the document").first.click()
    look("a document")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.locator("#documents-open").click()
    page.locator(".card").first.wait_for()
    look("the documents")
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.locator("button.cite").last.click()
    look("a wide screen")
    visit.context.close()


@browsing
def test_dark_and_light_are_the_systems_until_one_is_chosen(visit: Visit) -> None:
    page = visit.page

    def ground() -> int:
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    assert ground() > 600
    page.emulate_media(color_scheme="dark")
    assert ground() < 150
    page.locator("#theme").click()
    page.emulate_media(color_scheme="light")
    page.reload()
    assert ground() < 150
    page.locator("#theme").click()
    assert ground() > 600
    page.locator("#theme").click()
    page.emulate_media(color_scheme="dark")
    assert ground() < 150


# --- Attacks -----------------------------------------------------------------------------------------------------


@browsing
def test_documents_and_answers_cannot_make_requests_or_run_scripts(visit: Visit) -> None:
    page = visit.page
    visit.ask("Tell me of the ATTACK on leave <img src=x onerror='window.hacked=6'>")
    page.locator("details summary").click() if page.locator("details:not([open]) summary").count() else None
    for button in page.get_by_role("button", name="Show in the document").all():
        button.click()
        page.locator("#document-body .passage, #document-body .here").first.wait_for()
        page.keyboard.press("Escape")
    page.locator("#documents-open").click()
    page.locator(".card", has_text="onerror").wait_for()
    page.keyboard.press("Escape")
    page.reload()
    page.locator("#chats .chat").click()
    page.locator(".tools").wait_for()
    page.wait_for_timeout(300)
    visit.all_well()
    assert page.locator("img, iframe, object, embed, link[href*=evil], style, .text svg").count() == 0
    assert (
        page.locator(".text a").evaluate_all("links => links.map((link) => [link.protocol, link.rel])")
        == [["https:", "noopener noreferrer nofollow"]] * page.locator(".text a").count()
    )
    assert page.locator(".text a").count() >= 4
    expect(page.locator(".text")).to_contain_text("picture (https://evil.example/pixel.png)")
    expect(page.locator(".text")).to_contain_text("a link (javascript:window.hacked=3)")


RENDER = """async (texts) => {
    const {CITE, DOUBT, render} = await import(new URL("page/markdown.js", location.href));
    const {fill} = await import(new URL("page/dom.js", location.href));
    const mark = (text) => text
        .replace(/\\{(\\d)\\}/g, (_, n) => CITE(0, n)).replaceAll("{", DOUBT[0]).replaceAll("}", DOUBT[1]);
    const cite = (_, n) => `(${n})`;
    return texts.map((text) => fill(document.createElement("div"), render(mark(text), cite)).innerHTML);
}"""
SLOW_INPUTS = [
    "*a ",
    "**a_b ",
    "`` ` ",
    "[a](",
    "![",
    "> ",
    "- ",
    "1. ",
    "> - ",
    "<https://",
    "|-",
    "http://a(",
    "\\",
    "\ue0001,",
    "~~ ~~a",
    "  - a\n",
    ">" * 50 + "\n",
    "[](a (",
    "_*",
    "_a",
    "_a_",
    "***a",
    "[a][",
    "[a]: b\n",
    "[x](<",
    "&",
    "www.a.",
]


@browsing
def test_markdown_is_rendered_without_html(visit: Visit) -> None:
    assert dict(zip(MARKDOWN, visit.page.evaluate(RENDER, list(MARKDOWN)), strict=True)) == MARKDOWN


@pytest.mark.timing
@browsing
def test_no_text_takes_long_to_render(visit: Visit) -> None:
    for part in SLOW_INPUTS:
        for characters in (20_000, 50_000):
            start = time.monotonic()
            visit.page.evaluate(RENDER, [part * (characters // len(part))])
            assert time.monotonic() - start < 15, repr(part)  # a few tenths of a second on an idle machine
