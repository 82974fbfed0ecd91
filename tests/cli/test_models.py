"""`ragfm models`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from gguf import GGUFWriter
from support.tiny_gguf import write_tiny

from ragfm.cli.models import models
from ragfm.models.model_card import licence_warning


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ragfm"


def run(*words: str) -> str:
    return CliRunner().invoke(models, words, catch_exceptions=False).stdout


def test_info_describes_a_model(tmp_path: Path) -> None:
    about = json.loads(run("info", "--json"))
    assert (about["quantisation"], about["licence"], about["context_tokens"]) == ("Q4_1", "apache-2.0", 8192)
    assert about["chat_template"] is True
    assert about["megabytes_per_slot"] == 94.4  # 30 layers, 3 heads of 64, keys and values of 2 bytes, 4,096 tokens
    lines = [line.split() for line in run("info", str(write_tiny(tmp_path / "tiny.gguf"))).splitlines()]
    assert ["licence", "unknown"] in lines
    assert ["quantisation", "F32"] in lines
    folder = json.loads(run("info", str(_folder(tmp_path)), "--json"))
    assert (folder["architecture"], folder["context_tokens"], folder["quantisation"]) == ("llama", 512, "bfloat16")
    assert (folder["licence"], folder["licence_restricts"], folder["chat_template"]) == ("llama3.2", True, True)
    assert folder["megabytes_per_slot"] == round(2 * 2 * 2 * 2 * 16 * 512 / 1e6, 1)


def test_info_describes_unusual_models(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    config = {"model_type": "llama", "text_config": None, "quantization_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_bytes("---\nlicense: mit\n---\nFür Köln.".encode("latin-1"))
    described = json.loads(run("info", str(folder), "--json"))
    assert (described["architecture"], described["quantisation"], described["licence"]) == ("llama", None, "mit")
    writer = GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert json.loads(run("info", str(tmp_path / "vocabulary.gguf"), "--json"))["quantisation"] is None


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.safetensors").touch()
    config = {
        "model_type": "llama",
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "dtype": "bfloat16",
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "chat_template.jinja").touch()
    (tmp_path / "model" / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    return tmp_path / "model"


def test_models_in_folders_are_listed_and_damaged_ones_named(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    listed = CliRunner().invoke(models, ["list", str(tmp_path), "--json"], catch_exceptions=False)
    rows = {(row["name"], row["job"]) for row in json.loads(listed.stdout)["models"]}
    assert {("bundled", "reader"), ("bundled", "embedder"), (str(tiny), "reader")} <= rows
    assert "broken.gguf' is not a GGUF file" in listed.stderr
    assert str(tiny) in run("list", str(tmp_path))


FREE_LICENCES = ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0"]
RESTRICTIVE_LICENCES = ["cc-by-nc-4.0", "llama3.1", "gemma", "other", "mitigated"]


@pytest.mark.parametrize("licence", [*FREE_LICENCES, *RESTRICTIVE_LICENCES])
def test_licences_that_restrict_use(licence: str) -> None:
    assert (licence_warning(licence) is None) == (licence in FREE_LICENCES)
