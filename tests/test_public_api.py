"""Public names, import times, the map of modules, and the example of README.md."""

from __future__ import annotations

import ast
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from support.public_api import DEPRECATED, LISTED, _mark, public_api
from typing_extensions import deprecated

import ragfm
from ragfm.core import errors

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("torch", "transformers", "faiss", "llama_cpp", "sentence_transformers", "numpy", "sqlalchemy", "unstructured"),
    "rich",
)


def test_public_names_exist_and_are_sorted() -> None:
    assert ragfm.__all__ == sorted(ragfm.__all__)
    assert all(getattr(ragfm, name) is not None for name in ragfm.__all__)
    assert set(ragfm.__all__) == set(ragfm._HOME) | {"__version__"}
    with pytest.raises(AttributeError):
        _ = ragfm.nothing


def test_the_public_api_is_the_listed_one() -> None:
    listed: dict[str, list[str]] = json.loads(LISTED.read_text(encoding="utf-8"))
    present = public_api()
    gone = [f"{kind}: {line}" for kind, lines in listed.items() for line in lines if line not in present[kind]]
    new = [f"{kind}: {line}" for kind, lines in present.items() for line in lines if line not in listed[kind]]
    update = "python tests/support/public_api.py"
    assert not gone, (
        f"Removed, renamed or changed:\n{chr(10).join(gone)}\nNew:\n{chr(10).join(new)}\nKeep the old name for one "
        "minor version, and deprecate it (CONTRIBUTING.md#releases). If all calls of before still work, run "
        f"`{update}`."
    )
    assert not new, f"New:\n{chr(10).join(new)}\nRun `{update}` and commit the list."


def _gone_without_warning(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """Lines of the list of a version that are not in that of now, unless that version deprecated them."""
    return [
        f"{kind}: {line}"
        for kind, lines in before.items()
        for line in lines
        if not line.endswith(DEPRECATED) and not any(_still_works(line, one) for one in now.get(kind, ()))
    ]


def _still_works(before: str, now: str) -> bool:
    """Whether what a line promised holds by another: parameters and choices may be added at the end."""
    now = now.removesuffix(DEPRECATED)
    if "(" not in before:
        return now == before or now.startswith(f"{before} ")
    (name, old), (new_name, new) = (
        (line[: line.index("(")], line.strip(")").partition("(")[2].split(", "))
        for line in (before, now if "(" in now else f"{now}(")
    )
    positional = old.index("*") if "*" in old else len(old)
    added = set(new) - set(old) - {"*"}
    return (
        name == new_name
        and new[:positional] == old[:positional]
        and set(old) <= set(new)
        and all(one.endswith("=") for one in added)
    )


def test_what_the_last_version_had_is_there_or_was_deprecated_in_it() -> None:
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "describe", "--tags", "--abbrev=0", "--match", "v*"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("no version has a tag here")
    listed = subprocess.check_output([*git, "show", f"{found.stdout.strip()}:tests/public_api.json"], text=True)
    gone = _gone_without_warning(json.loads(listed), json.loads(LISTED.read_text(encoding="utf-8")))
    assert not gone, "Deprecate for one minor version what goes (CONTRIBUTING.md#releases):\n" + "\n".join(gone)


@pytest.mark.parametrize(
    ("before", "now", "allowed"),
    [
        ("Rag.ask(self, question, k=)", "Rag.ask(self, question, k=, *, mode=)", True),
        ("Rag.ask(self, question, k=)", "Rag.ask(self, question, k=, mode)", False),
        ("Rag.ask(self, question, k=)", "Rag.ask(self, k=, question)", False),
        ("Rag.ask(self, question, k=)", "Rag.ask(self, question)", False),
        ("Rag.ask(self, question, k=)", f"Rag.ask(self, question, k=){DEPRECATED}", True),
        (f"Rag.ask(self, question, k=){DEPRECATED}", "Rag.answer(self)", True),
        ("ragfm ask --mode dense hybrid", "ragfm ask --mode dense hybrid keyword", True),
        ("ragfm ask --mode dense hybrid", "ragfm ask --mode dense", False),
        ("OK = 0", "OK = 1", False),
    ],
)
def test_a_name_goes_only_after_a_version_that_deprecates_it(before: str, now: str, allowed: bool) -> None:
    gone = _gone_without_warning({"kind": [before]}, {"kind": [now]})
    assert gone == ([] if allowed else [f"kind: {before}"])


def test_the_list_marks_what_the_libraries_deprecate() -> None:
    @deprecated("Use `new`; `old` goes in 0.4.")
    def old() -> None: ...

    assert [_mark(one) for one in (old, click.Command("old", deprecated=True))] == [DEPRECATED] * 2
    assert [_mark(one) for one in (public_api, click.Command("new"))] == ["", ""]


def test_each_json_key_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.partition("## With `--json`")[2].partition("\n## ")[0]
    listed: list[str] = json.loads(LISTED.read_text(encoding="utf-8"))["json"]
    documented = ("ingest", "search", "ask", "documents", "export", "backup", "compact")
    keys = {re.split("[.:] ?", line)[-1] for line in listed if line.partition(": ")[0] in documented}
    assert [key for key in sorted(keys) if f"`{key}`" not in table] == []


def test_the_drawn_tree_of_errors_is_complete() -> None:
    drawn = re.findall(r"^    (?:[│ ]   )*(?:[├└]── )?([A-Z]\w+) +\S", errors.__doc__ or "", re.M)
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert sorted(drawn) == sorted(classes)
    assert all(issubclass(value, errors.RagfmError) for value in classes.values())


def test_every_module_is_listed_in_the_docs() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "ragfm").rglob("[!_]*.py"):
        package = path.parent / "__init__.py"
        listed = package.parent.name != "ragfm" and ast.get_docstring(ast.parse(package.read_text(encoding="utf-8")))
        named = re.search(rf"\b{path.stem}\b", listed or "") or re.search(rf"\b{path.stem}\.py\b", page)
        assert named, f"{path} is named in neither docs/architecture.md nor the docstring of its package"


@pytest.mark.parametrize("kind", [ragfm.Collection, ragfm.Rag])
def test_a_path_instead_of_a_collection_names_what_opens_it(kind: Any, tmp_path: Path) -> None:
    for path in (tmp_path, str(tmp_path)):
        with pytest.raises(TypeError, match=re.escape(f"Collection.open({str(tmp_path)!r})")):
            kind(path)


def test_importing_loads_no_heavy_library() -> None:
    code = f"import ragfm, ragfm.cli, sys; sys.exit(str([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "seconds"),
    [(["-c", "import ragfm"], 0.3), (["-c", "from ragfm.cli import main; main()", "--help"], 0.5)],
)
def test_start_up_time(command: list[str], seconds: float) -> None:
    def measure(words: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Minus the start of Python itself. Processor time and the best of five, because the machine may be busy.
    assert min(measure(command) for _ in range(5)) - min(measure(["-c", ""]) for _ in range(5)) < seconds


@pytest.mark.slow
def test_the_example_of_the_readme(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "leave.md").write_text(
        "# Leave\n\nEvery employee gets 28 days of leave a year.\n\n"
        "## Parental leave\n\nNew parents get 16 weeks of parental leave.\n"
    )
    (tmp_path / "docs" / "welcome.md").write_text(
        "# Welcome\n\nThe probation period is four months. After two months you talk with your team leader.\n"
    )
    checks = "assert hits and hits[0].uri == 'docs/leave.md' and text\nassert 'Four months' in answer.text"
    command = [sys.executable, "-c", f"{example}\n{checks}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout
