"""`ragfm models pull` and `recommend`, against a local server that speaks the hub's API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner, Result
from support.local_hub import COMMIT, LocalHub
from support.tiny_gguf import write_tiny

from ragfm.cli.models import models
from ragfm.core.errors import DamagedModelError, ModelNotFoundError, RagfmError, UnsupportedError
from ragfm.core.progress import Progress
from ragfm.models import recommended
from ragfm.models.download import HubFile, download
from ragfm.models.recommended import RECOMMENDED


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return write_tiny(tmp_path / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ragfm-cache"))
    with LocalHub({"tiny.gguf": weights}).running() as server:
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield server


def pull(*words: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(models, ["pull", *words], catch_exceptions=False, input=typed)


def test_a_file_is_downloaded_and_verified(hub: LocalHub, weights: bytes) -> None:
    result = json.loads(pull("me/tiny", "tiny.gguf", "--json").stdout)
    assert Path(result["file"]).read_bytes() == weights
    assert Path(result["file"]).parent.name == COMMIT
    assert result["sha256"] == sha256(weights).hexdigest()
    assert "not verified" not in pull("me/tiny", "tiny.gguf").stderr
    assert len(hub.ranges) == 1  # the second time it is in the cache


def test_an_interrupted_download_continues(hub: LocalHub, weights: bytes, tmp_path: Path) -> None:
    half = len(weights) // 2
    blobs = tmp_path / "hub" / "models--me--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(weights).hexdigest()}.part").write_bytes(weights[:half])
    path, _ = download(HubFile("me/tiny", "tiny.gguf"))
    assert path.read_bytes() == weights
    assert hub.ranges == [f"bytes={half}-"]
    assert [file.suffix for file in blobs.iterdir() if file.suffix == ".part"] == []


def test_a_connection_that_breaks_off_is_tried_again_at_once(hub: LocalHub, weights: bytes) -> None:
    hub.cut = len(weights) // 3
    path, _ = download(HubFile("me/tiny", "tiny.gguf"))
    assert path.read_bytes() == weights
    assert len(hub.ranges) == 2


def test_a_partial_file_stays_when_the_download_fails(
    hub: LocalHub, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(url: str, file: object, **options: object) -> None:
        file.write(weights[:100])  # type: ignore[attr-defined]
        raise OSError("the cable is unplugged")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", failing)
    with pytest.raises(ModelNotFoundError, match="the cable is unplugged") as caught:
        download(HubFile("me/tiny", "tiny.gguf"))
    assert "continues" in str(caught.value)
    monkeypatch.undo()
    (partial,) = (tmp_path / "hub").rglob("*.part")
    assert partial.read_bytes() == weights[:100]


def test_progress_is_reported_in_bytes(hub: LocalHub, weights: bytes) -> None:
    seen: list[Progress] = []
    download(HubFile("me/tiny", "tiny.gguf"), seen.append)
    assert (seen[-1].done, seen[-1].total) == (len(weights), len(weights))
    assert [one.done for one in seen] == sorted(one.done for one in seen)


def test_a_damaged_download_is_deleted(hub: LocalHub, weights: bytes, tmp_path: Path) -> None:
    hub.etags["tiny.gguf"] = sha256(weights).hexdigest()
    hub.files["tiny.gguf"] = weights[:-1] + b"!"
    with pytest.raises(DamagedModelError, match=sha256(weights).hexdigest()):
        download(HubFile("me/tiny", "tiny.gguf"))
    assert not list((tmp_path / "hub").rglob("*.part"))
    assert not list((tmp_path / "hub").rglob("*.gguf"))


def test_a_cached_file_that_was_damaged_since_is_downloaded_again(
    hub: LocalHub, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = replace(
        RECOMMENDED[0],
        repository="me/tiny",
        file="tiny.gguf",
        revision=COMMIT,
        sha256=sha256(weights).hexdigest(),
        licence="mit",
    )
    monkeypatch.setattr(recommended, "RECOMMENDED", (pinned,))
    pull(pinned.name)
    place = HubFile("me/tiny", "tiny.gguf", COMMIT).target
    place.resolve().write_bytes(weights[:-8])  # a bad disk
    assert json.loads(pull(pinned.name, "--json").stdout)["sha256"] == pinned.sha256
    assert place.read_bytes() == weights
    place.unlink()
    (own := tmp_path / "own.gguf").write_bytes(weights[:-8])
    place.symlink_to(own)  # another file, linked by hand
    pull(pinned.name)
    assert place.read_bytes() == weights
    assert own.exists()


def test_a_pinned_checksum_counts_more_than_the_hubs(hub: LocalHub, weights: bytes) -> None:
    with pytest.raises(DamagedModelError, match="expected sha256 0000"):
        download(HubFile("me/tiny", "tiny.gguf", sha256="0" * 64))
    hub.etags["tiny.gguf"] = "a" * 40  # a file that is not in LFS has no SHA-256 on the hub
    assert download(HubFile("me/tiny", "tiny.gguf"))[1] is None


def test_a_file_without_a_checksum_is_not_called_verified(hub: LocalHub) -> None:
    hub.etags["tiny.gguf"] = "a" * 40
    assert "was not verified" in pull("me/tiny", "tiny.gguf").stderr


def test_a_file_of_a_split_model_has_a_note(hub: LocalHub, weights: bytes) -> None:
    hub.files["tiny-00001-of-00003.gguf"] = weights
    assert "has 3 files: pull the others" in pull("me/tiny", "tiny-00001-of-00003.gguf").stderr


def test_a_repository_of_gguf_files_needs_the_file(hub: LocalHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no \.safetensors file.*`ragfm models pull me/tiny FILE`"):
        pull("me/tiny")


@pytest.mark.parametrize(("licence", "said"), [("llama3.2", "Licence of me/tiny: llama3.2"), (None, "does not state")])
def test_a_restrictive_or_unknown_licence_has_to_be_accepted(
    hub: LocalHub, licence: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.licence = licence
    with pytest.raises(UnsupportedError, match="was not accepted"):
        pull("me/tiny", "tiny.gguf")
    assert hub.ranges == []
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    with pytest.raises(UnsupportedError, match="was not accepted"):
        pull("me/tiny", "tiny.gguf", typed="n\n")
    done = pull("me/tiny", "tiny.gguf", typed="y\n")
    assert said in done.stderr
    assert "MB. Use it with --reader" in done.stdout
    assert len(hub.ranges) == 1


def test_a_flag_accepts_the_licence(hub: LocalHub) -> None:
    hub.licence = "llama3.2"
    assert "MB. Use it with" in pull("me/tiny", "tiny.gguf", "--accept-licence").stdout


@pytest.mark.parametrize(
    ("name", "file", "why"),
    [
        ("me/tiny", "evil.bin", "not a GGUF"),
        ("me/tiny", "no.gguf", "no.g"),
        ("my tiny", "tiny.gguf", "not a valid name"),
    ],
)
def test_other_files_are_refused(hub: LocalHub, name: str, file: str, why: str) -> None:
    with pytest.raises(RagfmError, match=why):
        pull(name, file)


def test_offline_it_lists_the_file_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = RECOMMENDED[0]
    done = CliRunner().invoke(models, ["pull", model.name])
    assert isinstance(done.exception, ModelNotFoundError)
    place = tmp_path / f"models--{model.repository.replace('/', '--')}" / "snapshots" / model.revision / model.file
    assert f"{model.repository}/resolve/{model.revision}/{model.file}" in done.stderr
    assert model.sha256 in done.stderr
    assert str(place) in done.stderr


def test_a_manually_copied_file_is_used_if_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bytes
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    pinned = replace(RECOMMENDED[0], sha256=sha256(weights).hexdigest())
    monkeypatch.setattr(recommended, "RECOMMENDED", (pinned,))
    place = HubFile(pinned.repository, pinned.file, pinned.revision).target
    place.parent.mkdir(parents=True)
    place.write_bytes(weights)
    assert str(place) in pull(pinned.name).stdout
    place.write_bytes(weights[:-1])
    with pytest.raises(ModelNotFoundError):
        pull(pinned.name)


# --- Recommended models ------------------------------------------------------------------------------------------


def test_recommended_models_are_pinned_and_sorted_by_memory() -> None:
    assert 5 <= len(RECOMMENDED) <= 10
    assert [model.memory_megabytes for model in RECOMMENDED] == sorted(model.memory_megabytes for model in RECOMMENDED)
    for model in RECOMMENDED:
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert re.fullmatch(r"[0-9a-f]{40}", model.revision)
        assert model.file.endswith(".gguf")
        assert bool(model.conditions) == (model.licence != "apache-2.0")


def test_the_largest_that_fits_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.cli.models.memory_limit_bytes", lambda: 4_000_000_000)
    result = json.loads(CliRunner().invoke(models, ["recommend", "--json"], catch_exceptions=False).stdout)
    rows = {row["name"]: row for row in result["models"]}
    assert result["recommended"] == "smollm3-3b"
    assert rows["smollm3-3b"]["fits"]
    assert not rows["qwen3-8b"]["fits"]
    shown = CliRunner().invoke(models, ["recommend"], catch_exceptions=False)
    assert "Qwen/Qwen3-8B-GGUF" in shown.stdout
    assert "Built with Llama" in shown.stderr
    assert "ragfm models pull smollm3-3b" in shown.stderr


def test_embedders_are_listed_by_their_published_quality() -> None:
    result = json.loads(CliRunner().invoke(models, ["recommend", "--json"], catch_exceptions=False).stdout)
    scores = [model["beir"] for model in result["embedders"]]
    assert scores == sorted(scores, reverse=True)
    assert all(model["beir_source"].startswith("https://") for model in result["embedders"])
    shown = CliRunner().invoke(models, ["recommend"], catch_exceptions=False)
    for model in result["embedders"]:
        assert f"{model['repository']} " in shown.stdout
    assert "ragfm reembed --embedder MongoDB/mdbr-leaf-ir" in shown.stderr


def test_without_enough_memory_nothing_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.cli.models.memory_limit_bytes", lambda: 1_000_000_000)
    result = json.loads(CliRunner().invoke(models, ["recommend", "--json"], catch_exceptions=False).stdout)
    assert result["recommended"] is None
