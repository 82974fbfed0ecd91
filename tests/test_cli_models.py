"""`ragfm models`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_gguf import write_tiny

from ragfm.cli_models import models
from ragfm.embed.choice import EXACT_ENOUGH
from ragfm.errors import UnsupportedError
from ragfm.readers import load_reader
from ragfm.readers import optimize as module
from ragfm.readers.llama_cpp import LlamaCppReader


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


def run(*words: str) -> str:
    return CliRunner().invoke(models, words, catch_exceptions=False).stdout


def test_info_says_what_a_model_is(tmp_path: Path) -> None:
    about = json.loads(run("info", "--json"))
    assert (about["quantisation"], about["licence"], about["context_tokens"]) == ("Q4_1", "apache-2.0", 8192)
    assert about["chat_template"] is True
    assert about["megabytes_per_slot"] == 94.4  # 30 layers, 3 heads of 64, keys and values of 2 bytes, 4,096 tokens
    assert about["form_in_use"] == "as it is"
    lines = run("info", str(write_tiny(tmp_path / "tiny.gguf"))).splitlines()
    assert {"licence            unknown", "quantisation       F32"} <= set(lines)
    with pytest.raises(UnsupportedError, match="folder"):
        run("info", str(_folder(tmp_path)))


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.safetensors").touch()
    return tmp_path / "model"


def test_the_optimised_form_is_used_and_said(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    measure = module._measure

    def biased(name: str, path: Path, reference: list[int] | None) -> tuple[module.Form, list[int]]:
        """Q4_0 is the fastest and loses too much, Q8_0 comes next."""
        form, expected = measure(name, path, reference)
        speed = {"as it is": 10.0, "Q4_0": 1000.0, "IQ4_NL": 50.0, "Q8_0": 100.0}[name]
        loss = form.perplexity * (2 if name == "Q4_0" else 1)
        return replace(form, prompt_tokens_per_second=speed, tokens_per_second=speed, perplexity=loss), expected

    monkeypatch.setattr(module, "_measure", biased)
    rows = {row["name"]: row for row in json.loads(run("optimize", str(tiny), "--json"))["forms"]}
    assert [name for name, row in rows.items() if row["chosen"]] == ["Q8_0"]
    assert 0.8 < rows["Q8_0"]["agreement"] <= 1.0
    assert 200 < rows["as it is"]["perplexity"] < 600  # random weights over 259 tokens
    assert rows["Q8_0"]["megabytes"] < rows["as it is"]["megabytes"]

    about = json.loads(run("info", str(tiny), "--json"))
    assert about["form_in_use"] == "Q8_0"
    made = Path(about["file_in_use"])
    assert made.parent == cache.parent / "models"
    assert len(list(made.parent.iterdir())) == 2  # the file and its note
    assert used(str(tiny)) == made

    whole = made.read_bytes()
    made.write_bytes(whole[:-1])  # not whole: the model's own file
    assert used(str(tiny)) == tiny
    made.write_bytes(whole)
    assert used(str(tiny)) == made
    run("optimize", str(tiny), "--undo")
    assert used(str(tiny)) == tiny
    assert list(made.parent.iterdir()) == []

    monkeypatch.setattr(module, "_FORMS", {})
    assert "chosen" in run("optimize", str(tiny)).splitlines()[1]
    assert used(str(tiny)) == tiny


def used(model: str) -> Path:
    reader = load_reader(model, threads=1, context_tokens=256)
    assert isinstance(reader, LlamaCppReader)
    return reader._engine.model.path
