"""`ragfm models bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ragfm.cli_models import models
from ragfm.embed.choice import EXACT_ENOUGH
from ragfm.errors import UnsupportedError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ragfm" / "forms.json"


def test_bench_shows_the_forms_and_remembers_the_fastest(cache: Path) -> None:
    said = json.loads(CliRunner().invoke(models, ["bench", "--json"], catch_exceptions=False).stdout)
    forms = {row["form"]: row for row in said["forms"]}
    assert {"numpy-fp32", "torch-fp32"} <= forms.keys()
    assert forms["numpy-fp32"]["lowest_cosine"] > 0.99999
    (chosen,) = (row for row in said["forms"] if row["chosen"])
    assert chosen["lowest_cosine"] >= EXACT_ENOUGH
    good = [row for row in said["forms"] if row["lowest_cosine"] >= EXACT_ENOUGH]
    assert chosen["tokens_per_second"] == max(row["tokens_per_second"] for row in good)
    (kept,) = json.loads(cache.read_text()).values()
    assert kept["form"] == chosen["form"]


def test_bench_for_people() -> None:
    lines = CliRunner().invoke(models, ["bench"], catch_exceptions=False).stdout.splitlines()
    assert lines[0].split() == ["form", "texts/s", "tokens/s", "lowest", "cosine"]
    assert sum(line.endswith("chosen") for line in lines) == 1


def test_an_embedder_without_forms() -> None:
    with pytest.raises(UnsupportedError, match="hashing has one form only"):
        CliRunner().invoke(models, ["bench", "--embedder", "hashing"], catch_exceptions=False)
