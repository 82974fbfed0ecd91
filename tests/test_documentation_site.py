"""The documentation site builds without a warning, is complete, and loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt

import ragfm
import ragfm.testing
from ragfm.cli.main import ragfm as program

ROOT = Path(__file__).parents[1]
LOADED = re.compile(
    r"<(?:script|link|img|iframe|source|video|audio|object)\b[^>]*\b(?:src|srcset|href|data)=\"?([^\"\s>]+)"
)
IMPORTED = re.compile(r"(?:url\(|@import\s)\s*[\"']?([^\"')\s]+)")


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    for package in ("material", "mkdocs", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="needs the extra `docs`")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    build = [ROOT / "scripts" / "docs", tmp_path / "site"]
    done = subprocess.run(build, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr

    pages = {
        page.relative_to(tmp_path / "site").as_posix(): page.read_text(encoding="utf-8")
        for page in _files(tmp_path, "html")
    }
    commands = set(re.findall(r"<h[23] id=\"([\w-]+)\"", pages["command-line.html"]))
    assert {name.replace(" ", "-") for name in _commands(program, "ragfm")} <= commands
    python = {
        name
        for page, text in pages.items()
        if page.startswith("python/")
        for name in re.findall(r' id="([\w.]+)"', text)
    }
    assert {f"ragfm.{name}" for name in ragfm.__all__ if name != "__version__"} <= python
    assert {f"ragfm.testing.{name}" for name in ragfm.testing.__all__} <= python
    sources = {"index.html": ROOT / "README.md", "changelog.html": ROOT / "CHANGELOG.md"}
    for source in sorted((ROOT / "docs").rglob("*.md")):
        sources[source.relative_to(ROOT / "docs").with_suffix(".html").as_posix()] = source
    sources["decisions/index.html"] = sources.pop("decisions/README.html")
    markdown = MarkdownIt("commonmark").enable("table")
    for page, source in sources.items():
        article = pages[page].partition("<article")[2].partition("</article>")[0]
        expected = _structure(markdown.render(source.read_text(encoding="utf-8")))
        assert _structure(article) == expected, f"{page} is not structured as on GitHub"
    assert "decisions/062-documentation-site.html" in pages
    assert (tmp_path / "site" / "search" / "search_index.json").stat().st_size > 100_000

    loaded = {address for text in pages.values() for address in LOADED.findall(text)}
    loaded |= {
        address for page in _files(tmp_path, "css") for address in IMPORTED.findall(page.read_text(encoding="utf-8"))
    }
    assert loaded
    assert not [address for address in loaded if re.match(r"(?:\w+:)?//", address)]


def _structure(html: str) -> dict[str, int]:
    """Numbers of headings, list items, rows, blocks of code and images."""
    return {
        tag: len(re.findall(f"<{tag}[ >]", html))
        for tag in ("h1", "h2", "h3", "h4", "ul", "ol", "li", "tr", "pre", "img")
    }


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{suffix}"))


def _commands(command: click.Command, name: str) -> list[str]:
    """The full names of the commands of a group, and of the groups in it."""
    within = command.commands.items() if isinstance(command, click.Group) else ()
    return [full for word, one in within for full in (f"{name} {word}", *_commands(one, f"{name} {word}"))]
