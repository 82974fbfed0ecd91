"""Code blocks, commands and links of the Markdown files."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ragfm.cli.main import ragfm as program

ROOT = Path(__file__).parents[1]
FILES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / "ragfm" / "models" / "shipped").rglob("*.md")),
]
LANGUAGES: dict[str, Callable[[str], Any]] = {
    "python": ast.parse,
    "toml": tomllib.loads,
    "json": json.loads,
    "yaml": yaml.safe_load,
}
SHELL = {"sh", "console"}
OTHER_PAGES = {"docs/leave.md", "docs/hr/leave.md", "docs/gguf.md"}  # examples, and a page of ggml
RUNNERS = {"ragfm", "sudo", "docker"}  # programs that run ragfm with the words after its name


def _is_dated(file: Path) -> bool:
    """Whether it names commands of its time, which may have been removed."""
    return file.name == "CHANGELOG.md" or file.parent.name == "decisions"


@cache
def _tokens(file: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8"))


def _inline(file: Path, kind: str) -> Iterator[Token]:
    for token in _tokens(file):
        yield from (one for one in token.children or () if one.type == kind)


def test_code_blocks_parse() -> None:
    for file in FILES:
        for token in _tokens(file):
            if token.type == "fence" and (parse := LANGUAGES.get(token.info)):
                try:
                    parse(token.content)
                except (SyntaxError, ValueError, yaml.YAMLError) as error:
                    pytest.fail(f"{file}: block of {token.info} at line {(token.map or [0])[0] + 1}: {error}")


def test_commands_in_shell_blocks_exist() -> None:
    wrong = [
        f"{file}: {problem}"
        for file in FILES
        for token in _tokens(file)
        if token.type == "fence" and token.info in SHELL
        for words in _segments(token.content, prompt=token.info == "console")
        if (problem := _problem(words, complete=True))
    ]
    assert not wrong, "\n".join(wrong)


def test_commands_in_the_text_exist() -> None:
    wrong = [
        f"{file}: {problem}"
        for file in FILES
        if not _is_dated(file)
        for token in _inline(file, "code_inline")
        if re.match(r"ragfm [a-z]", token.content) and "|" not in token.content
        for words in _segments(token.content.replace("…", ""), prompt=False)
        if (problem := _problem(words, complete=False))
    ]
    assert not wrong, "\n".join(wrong)


def _segments(text: str, *, prompt: bool) -> Iterator[list[str]]:
    """The simple commands of a shell block that run ragfm: its arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        if prompt and not line.startswith("$ "):
            continue
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not re.fullmatch("[;&|]+", word):
                words.append(word)
                continue
            names = [n for n, one in enumerate(words) if one.rpartition("/")[2] == "ragfm"]
            if names and words[0] in RUNNERS:
                yield words[names[-1] + 1 :]
            words = []


def _problem(words: list[str], *, complete: bool) -> str:
    """What is wrong with the arguments of a command; empty if they are right."""
    command: click.Command = program
    context = click.Context(command, info_name="ragfm", **command.context_settings)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if not (found := command.commands.get(words[0])):
            return f"There is no command `{context.command_path} {words[0]}`."
        command, context, words = found, click.Context(found, info_name=words[0], parent=context), words[1:]
    try:
        command.make_parser(context).parse_args([re.sub(r"^\[(-.*)", r"\1", word.rstrip("]")) for word in words])
    except click.NoSuchOption as error:
        return f"`{context.command_path}` has no option {error.option_name}."
    except click.UsageError as error:  # in a sentence, an option may stand without its value
        if complete:
            return f"`{context.command_path} {shlex.join(words)}`: {error.format_message()}"
    return ""


@cache
def _anchors(file: Path) -> set[str]:
    """Anchors: those that GitHub makes of headings, and `<a id="...">`."""
    anchors = set(re.findall(r"<a id=\"([^\"]+)\">", "".join(one.content for one in _inline(file, "html_inline"))))
    seen: Counter[str] = Counter()
    tokens = _tokens(file)
    for opened, content in pairwise(tokens):
        if opened.type == "heading_open":
            text = "".join(one.content for one in content.children or () if one.type in {"text", "code_inline"})
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return anchors


def test_relative_links_resolve() -> None:
    for file in FILES:
        links = [str(token.attrGet("href")) for token in _inline(file, "link_open")]
        links += [str(token.attrGet("src")) for token in _inline(file, "image")]
        for link in links:
            if re.match(r"\w+:", link):
                continue
            address, _, anchor = unquote(link).partition("#")
            target = (file.parent / address).resolve() if address else file
            assert target.exists(), f"{file}: there is no {link}."
            assert target.is_relative_to(ROOT), f"{file}: {link}"
            assert not anchor or anchor in _anchors(target), f"{file}: there is no heading for {link}."


def test_pages_that_the_code_and_the_changelog_name_exist() -> None:
    sources = [path for folder in ("ragfm", "indexes", "connectors") for path in (ROOT / folder).rglob("*.py")]
    for source in [ROOT / "CHANGELOG.md", *sources]:
        for page, anchor in re.findall(r"\b(docs/[\w/-]+\.md)(?:#([\w-]+))?", source.read_text(encoding="utf-8")):
            if page not in OTHER_PAGES:
                assert (ROOT / page).exists(), f"{source} names {page}."
                assert not anchor or anchor in _anchors(ROOT / page), f"{source} names {page}#{anchor}."
