"""What the page makes of texts: safe Markdown and nothing else; and how it looks, to people and to axe."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.browser import Visit, browsing, expect
from support.running_server import Running

AWAY = 'target="_blank" rel="noopener noreferrer nofollow"'
DOUBT = '<span class="hidden">Unsupported: </span><span class="doubt">'
TABLE = '<div class="wide" tabindex="0" role="group" aria-label="Table"><table><thead>'

MARKDOWN = {
    "a *b* **c _d_** ~~e~~ `f*g*`": "<p>a <em>b</em> <strong>c <em>d</em></strong> <del>e</del> <code>f*g*</code></p>",
    "snake_case_name 2*3*4 * a * \\*b\\* **open": "<p>snake_case_name 2<em>3</em>4 * a * *b* **open</p>",
    "1. a\n2. b\n   - c\n\n     d\n3. e": "<ol><li>a</li><li>b<ul><li>c<p>d</p></li></ul></li><li>e</li></ol>",
    "7) a\n- b": '<ol start="7"><li>a</li></ol><ul><li>b</li></ul>',
    "# H\ntext\nmore\n***\n> q\n> - r":
        "<h3>H</h3><p>text<br>more</p><hr><blockquote><p>q</p><ul><li>r</li></ul></blockquote>",
    "```py\na <b>\n# x\n```\nz": '<pre tabindex="0"><code>a &lt;b&gt;\n# x</code></pre><p>z</p>',
    "``a`b`` `open": "<p><code>a`b</code> `open</p>",
    "[t](https://a.example/x_(y)) [u](ftp://b.example) ![p](http://c.example)": (
        f'<p><a href="https://a.example/x_(y)" {AWAY}>t</a><span class="target"> (https://a.example/x_(y))</span> '
        f'u (ftp://b.example) <a href="http://c.example/" {AWAY}>p</a><span class="target"> (http://c.example)</span></p>'
    ),
    "a <b>c</b> & <!-- d --> [1] [x]": "<p>a &lt;b&gt;c&lt;/b&gt; &amp; &lt;!-- d --&gt; [1] [x]</p>",
    "|a|b|\n|-|-|\n|1 \\| 2|**3**|\n|4|": (
        f"{TABLE}<tr><th>a</th><th>b</th></tr></thead><tbody>"
        "<tr><td>1 | 2</td><td><strong>3</strong></td></tr><tr><td>4</td><td></td></tr></tbody></table></div>"
    ),
    # Marks of doubt, wherever a sentence begins or ends:
    "\ue002- a `b`\n  \ue002- c\ue003": (
        f'<ul><li>{DOUBT}a </span><code>b</code><ul><li>{DOUBT}c</span></li></ul></li></ul>'
    ),
    "\ue002```\nx\ue003\n```\ny \ue002[t](b) z\ue003":
        f'<pre tabindex="0"><code>x</code></pre><p>y {DOUBT}t (b) z</span></p>',
    "\ue002|a|\ue003\n\ue002|-|\n|\ue0000,1\ue001| \ue0001,2\ue001\ue003\n\nz": (
        f'{TABLE}<tr><th>{DOUBT}a</span></th></tr></thead><tbody>'
        '<tr><td>0<span class="doubt"> </span>1</td></tr></tbody></table></div><p>z</p>'
    ),
}  # fmt: skip


# --- Looks -------------------------------------------------------------------------------------------------------


@browsing
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_fault_that_axe_knows_at_any_width(browser: Any, open_server: Running, scheme: str) -> None:
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
def test_what_documents_and_answers_hold_makes_no_request_and_runs_no_script(visit: Visit) -> None:
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


@browsing
def test_markdown_is_read_and_html_is_not_and_no_text_takes_long(visit: Visit) -> None:
    render = """async (texts) => {
        const {render} = await import(new URL("page/markdown.js", location.href));
        const {fill} = await import(new URL("page/dom.js", location.href));
        return texts.map((text) => fill(document.createElement("div"), render(text, String)).innerHTML);
    }"""
    assert dict(zip(MARKDOWN, visit.page.evaluate(render, list(MARKDOWN)), strict=True)) == MARKDOWN
    nasty = [
        "*a ",
        "**a_b ",
        "`` ` ",
        "[a](",
        "![",
        "> ",
        "- ",
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
    ]
    for part in nasty:
        start = "Date.now()"
        began = visit.page.evaluate(start)
        visit.page.evaluate(render, [part * (50_000 // len(part))])
        assert visit.page.evaluate(start) - began < 3000, repr(part)
