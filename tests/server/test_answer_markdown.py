"""Markdown of answers: what documents bring along is shown, but does nothing, however the answer is divided."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from support.running_server import QUESTION, serve

from ragfm import Collection, Settings
from ragfm.server.answer_markdown import AnswerMarkdown, inert
from ragfm.testing import ScriptedReader

MARKDOWN = MarkdownIt("commonmark").enable("table")
ACTIVE = {"image", "link_open", "html_inline", "html_block"}
ATTACKS = [
    "![pixel](http://evil.example/p.png)",
    "[the terms](http://evil.example)",
    "![pixel][1]\n\n[1]: http://evil.example/p.png",
    "See [1].\n\n[1]: http://evil.example",
    "<img src=http://evil.example/p.png>",
    "<http://evil.example>",
    "a</p><script>alert(1)</script>",
    "<!-- hidden -->",
    "\\\\![pixel](http://evil.example)",
    "`a\nb` ![pixel](http://evil.example) `c`",
    "| `a | ![pixel](http://evil.example)` |\n|-|-|\n| x | `y` |",
    "- ```\n\n![pixel](http://evil.example)\n\n```",
    "~~~\n```\n~~~\n![pixel](http://evil.example)",
    "```\na\n  ```  \n![pixel](http://evil.example)",
    "```\ra\r```\r![pixel](http://evil.example)",
    "``a` ![pixel](http://evil.example) ``` b",
    "\\`` ![pixel](http://evil.example) `",
]
CODE = [
    "Use `<div>` and `call[0](x)`.",
    "Use ``a`<b>``.",
    "```python\nif a<b: call[0](x)\n\n    # ![kept](x)\n```\nThen `![x](y)`.",
    "````\n```\n<b>\n```\n````\n`<i>`",
    "Text\n```\nvec![1](2)",
]


def active(text: str) -> set[str]:
    """The kinds of active elements in rendered Markdown."""

    def kinds(tokens: list[Token]) -> Iterator[str]:
        for token in tokens:
            yield token.type
            yield from kinds(token.children or [])

    return ACTIVE & set(kinds(MARKDOWN.parse(text)))


@pytest.mark.parametrize("text", ATTACKS)
def test_images_links_and_html_do_nothing_and_stay_readable(text: str) -> None:
    safe = AnswerMarkdown(is_safe=True).feed(text, last=True)
    assert active(safe) == active(inert(text)) == set()
    assert safe.replace("\u200c", "") == text


@pytest.mark.parametrize("text", CODE)
def test_code_stays_as_it_is(text: str) -> None:
    assert AnswerMarkdown(is_safe=True).feed(text, last=True) == text


def test_after_what_may_not_be_code_all_code_is_made_safe() -> None:
    safe = AnswerMarkdown(is_safe=True).feed("It costs $5 ` and $6 `![a](b)`", last=True)
    assert safe == "It costs $5 ` and $6 `!\u200c[a]\u200c(b)`"


def test_no_text_is_active_however_it_is_divided() -> None:
    dice = random.Random(1)
    parts = [*ATTACKS, *CODE, *"`|!][()<:\n\r\\$~-> ", "```", "\n```\n", "\n\n", "    ", "word", "http://a.example/"]
    seen = 0
    for _ in range(2000):
        text = "".join(dice.choices(parts, k=dice.randint(1, 12)))
        whole, divided = AnswerMarkdown(is_safe=True), AnswerMarkdown(is_safe=True)
        safe = whole.feed(text, last=True)
        cuts = sorted(dice.choices(range(len(text) + 1), k=dice.randint(0, 20)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert "".join([*map(divided.feed, pieces), divided.feed("", last=True)]) == safe
        assert active(safe) == set(), text
        assert [safe[whole.offset(at + 1) - 1] for at in range(len(text))] == list(text)
        seen += bool(active(text))
    assert seen > 1000


def test_overrides_of_the_direction_are_shown() -> None:
    markdown = AnswerMarkdown(is_safe=True)
    assert markdown.feed("Pay \u202e001$.", last=True) == "Pay \\u202e001$."
    assert (markdown.offset(4), markdown.offset(5)) == (4, 10)


ACTIVE_ANSWER = "Parents get 16 weeks more [1]. ![pixel](http://evil.example/p) <img src=x> `<b>`"
SAFE_ANSWER = "Parents get 16 weeks more [1]. !\u200c[pixel]\u200c(http://evil.example/p) <\u200cimg src=x> `<b>`"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection with a file whose name and text are hostile."""
    docs = tmp_path / "docs"
    docs.mkdir()
    name = "leave\u202etxt.![x](b)\u2215.md"
    (docs / name).write_text("Parents get 16 weeks more ![pixel](http://evil.example/p).\n")
    (tmp_path / "ragfm.toml").write_text('[ask]\nreranker = "none"\n')
    Collection.open(tmp_path / "handbook", settings=Settings(), embedder="hashing").sync(docs)
    return tmp_path


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("policy", ["safe", "as is"])
def test_answers_over_the_api(folder: Path, policy: str, stream: bool) -> None:
    with (folder / "ragfm.toml").open("a") as file:
        file.write(f'[server]\nmarkdown = "{policy}"\n')
    with serve(folder, ScriptedReader([f"{ACTIVE_ANSWER}."]), collection=folder / "handbook") as it:
        create = it.openai().chat.completions.create
        headers = {"x-ragfm-footnotes": "true"}
        if stream:
            chunks = list(create(model="handbook", messages=QUESTION, stream=True, extra_headers=headers))
            content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            annotations = [note["url_citation"] for note in chunks[-1].choices[0].delta.model_extra["annotations"]]
            details = chunks[-1].model_extra["ragfm"]
        else:
            answer = create(model="handbook", messages=QUESTION, extra_headers=headers)
            content, details = answer.choices[0].message.content, answer.model_extra["ragfm"]
            annotations = [note.url_citation.model_dump() for note in answer.choices[0].message.annotations]
    said, _, sources = content.partition("\n\nSources:\n")
    assert said.startswith(SAFE_ANSWER if policy == "safe" else ACTIVE_ANSWER)
    assert active(content) == (set() if policy == "safe" else {"image", "html_inline"})
    assert "\\u202e" in sources
    assert "\\u2215" in sources
    assert not {"\u202e", "\u2215"} & set(annotations[0]["title"])
    assert active(annotations[0]["title"]) == (set() if policy == "safe" else {"image"})
    assert content[annotations[0]["start_index"] : annotations[0]["end_index"]] == "Parents get 16 weeks more [1]."
    quote = details["citations"][0]
    assert "![pixel](http://evil.example/p)" in quote["quote"]  # for programs, as in the document
    assert details["shown"].startswith(ACTIVE_ANSWER)
