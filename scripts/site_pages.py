"""Write the pages of the documentation site: those of docs/, README.md and CHANGELOG.md, and pages made from the code.

The Markdown files stay as they are. Copies are written into a folder, from which the site is built: README.md
becomes the home page, links to files that are not pages get a copy of the file, and GitHub's Markdown becomes that of
the site. The command line reference, the Python reference and the examples are generated.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

import ragfm
import ragfm.testing
from ragfm.cli.main import SECTIONS
from ragfm.cli.main import ragfm as program

ROOT = Path(__file__).parents[1]
CODE = r"^(?P<indent> *)(?P<fence>`{3,})[^\n]*\n.*?^(?P=indent)(?P=fence) *$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
LINK = r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^()\s]+)\)"
PAGE = r"(?P<page>\bdocs/[\w/-]+\.md)"
# Code may contain links, and links code.
CODE_OR_LINK = re.compile(rf"{CODE}|{LINK}|{PAGE}", re.M | re.S)

# A page for each group of names, as (file, title, introduction, names).
PYTHON_PAGES = (
    (
        "python/collections.md",
        "Collections and search",
        "A collection is a folder, or a schema of a PostgreSQL database, with documents and their indexes. "
        "[Configuration](../configuration.md) describes the keys of `Settings`.",
        ("Collection", "AsyncCollection", "Hit", "DocumentInfo", "Status", "SyncReport", "Settings", "load_settings"),
    ),
    (
        "python/answers.md",
        "Answers",
        "`Rag` answers questions from the documents of a collection, and `check` checks the answers of any system.",
        (
            *("Rag", "AsyncRag", "Answer", "Citation", "AnswerStream", "Extraction", "AnswerLog", "Message"),
            *("Sampling", "ImagePart", "check", "CheckedSentence"),
        ),
    ),
    (
        "python/plugins.md",
        "Plugins",
        "Protocols that plugins implement, and the values that they receive and return.",
        (
            *("Connector", "Ref", "Blob", "Document", "ragfm.core.types.Mark", "ragfm.parsing.parsers.Parser", "Chunk"),
            *("Embedder", "VectorIndex"),
            *("ragfm.store.search_backend.SearchBackend", "Reranker", "Reader", "Stream", "Usage"),
            *("load_embedder", "load_reader", "load_reranker"),
        ),
    ),
    ("python/errors.md", "Errors", "", ("RagfmError", "ragfm.core.errors")),
    ("python/testing.md", "Contract tests and fakes", "", ("ragfm.testing",)),
)
# Options of mkdocstrings.
OPTIONS = {
    "Settings": ("members: false",),
    "ragfm.core.errors": ('filters: ["!^RagfmError$"]',),
}


def replace_links(text: str, replace: Callable[[str], str]) -> str:
    """Markdown with the target of each link and image replaced, and names of pages made links."""

    def replaced(match: re.Match[str]) -> str:
        if page := match["page"]:
            return f"[{page}]({replace(page)})" if (ROOT / page).exists() else page
        return f"{match['text']}({replace(match['target'])})" if match["target"] else match[0]

    return CODE_OR_LINK.sub(replaced, text)


def page_sources() -> dict[Path, str]:
    """The pages that are files of the repository: the path of each, and its place in the site."""
    pages = {ROOT / "README.md": "index.md"}
    pages |= {ROOT / name: name.lower() for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
    pages[ROOT / "SECURITY.md"] = "security-policy.md"
    docs = ROOT / "docs"
    pages |= {path: path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*.md"))}
    pages |= {docs / "decisions/README.md": "decisions/index.md", ROOT / "benchmarks/README.md": "benchmark-runs.md"}
    shipped = sorted((ROOT / "ragfm/models/shipped").glob("*/README.md"))
    return pages | {path: f"models/{path.parent.name}.md" for path in shipped}


class Site:
    """The folder of pages, and where each file of the repository is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = page_sources()
        self.places[ROOT / "docs/decisions"] = "decisions/index.md"
        for path in sorted((ROOT / "examples").rglob("*")):
            self.places[path] = "examples.md" if path.is_dir() else f"examples.md#{_example_anchor(path)}"

    def write(self, name: str, text: str) -> None:
        """Write a page."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_sources(self) -> None:
        """Write the pages that are files of the repository."""
        for path, name in page_sources().items():
            self.write(name, _adapt_lists(self._relink(path.read_text(encoding="utf-8"), path, name)))

    def _relink(self, text: str, source: Path, page: str) -> str:
        def relinked(link: str) -> str:
            target, _, anchor = link.partition("#")
            if not target or re.match(r"\w+:", target):
                return link
            folder = ROOT if re.fullmatch(PAGE, target) else source.parent
            address, _, default = self._place((folder / target).resolve()).partition("#")
            anchor = anchor or default
            return os.path.relpath(address, Path(page).parent) + (f"#{anchor}" if anchor else "")

        return replace_links(text, relinked)

    def _place(self, path: Path) -> str:
        if path not in self.places:
            if not path.is_file():
                return path.relative_to(ROOT).as_posix()  # the build reports it
            docs = ROOT / "docs"
            place = path.relative_to(docs if path.is_relative_to(docs) else ROOT).as_posix()
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.folder / place)
            self.places[path] = place
        return self.places[path]

    def write_examples(self) -> None:
        """Write a page with the scripts of examples/."""
        lines = ["# Examples\n", "Complete programs of the folder `examples`, which run as they are.\n"]
        for path in sorted((ROOT / "examples").rglob("*.py")):
            name, code = path.relative_to(ROOT / "examples").as_posix(), path.read_text(encoding="utf-8").strip()
            lines += [f"## {name}\n", f"```python\n{code}\n```\n"]
        self.write("examples.md", "\n".join(lines))

    def write_command_line(self) -> None:
        """Write the reference of the command line."""
        lines = ["# Command line\n", f"{_text(program)}\n"]
        for title, commands in SECTIONS.items():
            lines += [f"- **{title}**: " + ", ".join(f"[{one.name}](#ragfm-{one.name})" for one in commands)]
        top = click.Context(program, info_name="ragfm", **program.context_settings)
        lines += ["", *_described(top)]
        for context in (found for commands in SECTIONS.values() for one in commands for found in walk(one, top)):
            level = "##" if context.parent is top else "###"
            lines += [f"{level} {context.command_path}\n", f"{_text(context.command)}\n", *_described(context)]
        text = "\n".join(lines) + "\n"
        self.write("command-line.md", self._relink(text, ROOT / "README.md", "command-line.md"))

    def write_python(self) -> None:
        """Write the reference of the Python API, which the build completes from the docstrings."""
        named = [name for page in PYTHON_PAGES for name in page[3] if "." not in name]
        if missing := set(ragfm.__all__) - {*named, "__version__"}:
            raise SystemExit(f"scripts/site_pages.py: PYTHON_PAGES lacks {', '.join(sorted(missing))}.")
        for file, title, introduction, names in PYTHON_PAGES:
            lines = [f"# {title}\n", f"{introduction}\n"]
            for name in names:
                path = name if "." in name else f"ragfm.{name}"
                lines.append(f"::: {path}\n")
                if name in OPTIONS:
                    lines.append("    options:\n" + "".join(f"      {option}\n" for option in OPTIONS[name]))
            self.write(file, "\n".join(lines))


def _example_anchor(path: Path) -> str:
    return re.sub(r"[^\w-]", "", path.relative_to(ROOT / "examples").as_posix())


def _adapt_lists(text: str) -> str:
    # Python-Markdown wants four characters before the second paragraph of a list item, where GitHub wants as many as
    # the item's mark has, and an empty line between a paragraph and a list.
    lines, in_code, in_list, in_item, before = [], False, False, False, ""
    for line in text.split("\n"):
        if line.startswith("```"):
            in_code = not in_code
        if in_code:
            in_list = in_item = False
        elif re.match(r"[-*] |1\. ", line) or (in_list and re.match(r"\d+\. ", line)):
            if before and not in_item:
                lines.append("")
            in_list = in_item = True
        elif line and not before:
            in_list, in_item = in_list and line.startswith("  "), False
        lines.append(f"  {line}" if in_list and line.startswith("  ") else line)
        before = line
    return "\n".join(lines)


def walk(command: click.Command, parent: click.Context) -> Iterator[click.Context]:
    """The contexts of a command and of those in it."""
    context = click.Context(command, info_name=command.name, parent=parent)
    yield context
    if isinstance(command, click.Group):
        for one in command.commands.values():
            yield from walk(one, context)


def _escape(text: str) -> str:
    text = re.sub(r"(`[^`]*`)|([\\*_\[\]|{}#])", lambda match: match[1] or f"\\{match[2]}", text)
    return text.replace("<", "&lt;")


def _text(command: click.Command) -> str:
    parts = []
    for part in inspect.cleandoc((command.help or command.short_help or "").partition("\f")[0]).split("\n\n"):
        if part.startswith("\b"):
            parts.append("```text\n" + part.removeprefix("\b").strip("\n") + "\n```")
        else:
            parts.append(_escape(" ".join(part.split("\n"))))
    return "\n\n".join(parts)


def _described(context: click.Context) -> list[str]:
    # Usage and options of a command.
    command = context.command
    words = " ".join(command.collect_usage_pieces(context))
    lines = [f"```text\n{context.command_path} {words}\n```\n"]
    records = [record for one in command.get_params(context) if (record := one.get_help_record(context))]
    if records:
        lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [f"| {_code(names)} | {_escape(' '.join(text.split()))} |" for names, text in records]
        lines.append("")
    return lines


def _code(names: str) -> str:
    return "<code>" + names.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;") + "</code>"


def main(folder: Path) -> None:
    """Write all pages into a new folder."""
    if folder.exists():
        shutil.rmtree(folder)
    site = Site(folder)
    site.write_sources()
    site.write_examples()
    site.write_command_line()
    site.write_python()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
