"""The other embedders: GGUF files, static models and a server, each with a real model."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragfm import Collection, Settings
from ragfm.core.errors import DamagedModelError, EmbeddingError, TooLongError, UnsupportedError
from ragfm.core.types import Embedder
from ragfm.embedders import load_embedder
from ragfm.embedders import openai_embedder as endpoint_module
from ragfm.embedders.token_offsets import estimated_offsets
from ragfm.models.model_lookup import find_model
from ragfm.testing import HashingEmbedder, check_embedder

TEXTS = ["A cat sits on a mat.", "A kitten rests on a rug.", "Interest rates rose.", "Naïve café 日本語 😀 [x]"]


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return load_embedder("bundled")


# --- GGUF --------------------------------------------------------------------------------------------------------


def write_gguf(path: Path) -> Path:
    """The bundled model as a GGUF file, with the tensor names of llama.cpp's converter."""
    import gguf
    from safetensors.numpy import load_file

    folder = find_model("bundled", "embedder")
    config = json.loads((folder / "config.json").read_text())
    vocabulary = (folder / "vocab.txt").read_text().splitlines()
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(512)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    names_in_gguf = []
    for token in vocabulary:
        if token in special or (token.startswith("[unused") and token.endswith("]")):
            names_in_gguf.append(token)
        else:
            names_in_gguf.append(token[2:] if token.startswith("##") else "\u2581" + token)
    writer.add_token_list(names_in_gguf)
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    writer.add_token_types([kinds[0] if token in special else kinds[1] for token in vocabulary])
    writer.add_token_type_count(config["type_vocab_size"])
    kinds_of_special = {
        "unk": "[UNK]",
        "bos": "[CLS]",
        "eos": "[SEP]",
        "sep": "[SEP]",
        "pad": "[PAD]",
        "mask": "[MASK]",
    }
    for kind, name in kinds_of_special.items():
        getattr(writer, f"add_{kind}_token_id")(vocabulary.index(name))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name == "embeddings.position_ids" or name.startswith("pooler."):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        half = tensor.ndim == 2 and "position" not in name and "token_type" not in name
        writer.add_tensor(target, tensor.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "minilm.gguf")


def test_a_gguf_file_keeps_the_contract_and_gives_the_models_vectors(gguf_file: Path, minilm: Embedder) -> None:
    embedder = load_embedder(str(gguf_file))
    check_embedder(embedder)
    assert (embedder.dim, embedder.max_tokens) == (384, 510)
    assert embedder.fingerprint["pooling"] == "mean"
    found = embedder.embed_passages(TEXTS)
    assert (found * minilm.embed_passages(TEXTS)).sum(1).min() > 0.999
    counts = [len(offsets) for offsets in embedder.tokenize(TEXTS)]
    assert counts == [len(offsets) for offsets in minilm.tokenize(TEXTS)]


@pytest.mark.slow
def test_more_texts_than_fit_into_one_batch(gguf_file: Path) -> None:
    embedder = load_embedder(str(gguf_file))
    texts = [f"Text {number}. " + "word " * (number * 7 % 100) for number in range(150)]
    together = embedder.embed_passages(texts)
    alone = np.concatenate([embedder.embed_passages([text]) for text in texts[::30]])
    assert np.allclose(together[::30], alone, atol=2e-3)


@pytest.mark.slow
def test_a_model_without_pooling_metadata_uses_mean_pooling() -> None:
    embedder = load_embedder(str(find_model("bundled", "reader")))
    assert embedder.fingerprint["pooling"] == "mean"
    check_embedder(embedder)


def test_files_that_are_not_gguf_embedders_are_refused(tmp_path: Path, gguf_file: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(DamagedModelError, match="is not a GGUF file"):
        load_embedder(str(tmp_path / "x.gguf"))
    (tmp_path / "y.gguf").write_bytes(gguf_file.read_bytes()[:100_000])
    with pytest.raises(DamagedModelError, match="is damaged: it announces"):
        load_embedder(str(tmp_path / "y.gguf")).embed_queries(["boats"])
    with pytest.raises(UnsupportedError, match="is not a sentence-transformers folder"):
        load_embedder(f"sentence-transformers:{gguf_file}")


def test_offsets_are_estimated_from_token_counts() -> None:
    text = "  ab  cdefgh "
    offsets = estimated_offsets(text, lambda part: len(part.split()) + 2 * ("cdefgh" in part))
    assert offsets.tolist() == [[0, 4], [4, 7], [7, 9], [9, 12]]
    assert len(estimated_offsets(text, lambda part: 7 if part == text else 1)) == 7  # the words don't add up
    assert estimated_offsets("", lambda _: 0).shape == (0, 2)


# --- Static ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's token embeddings, as a static model."""
    model2vec = pytest.importorskip("model2vec", reason="needs `pip install -e '.[static]'`")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = find_model("bundled", "embedder")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    target = tmp_path_factory.mktemp("static")
    model2vec.StaticModel(words, tokenizer, normalize=True).save_pretrained(target)
    return target


def test_a_static_model_keeps_the_contract(static_folder: Path) -> None:
    embedder = load_embedder(f"model2vec:{static_folder}")
    check_embedder(embedder)
    assert embedder.dim == 384
    one, other, far, _ = embedder.embed_passages(TEXTS)
    assert one @ other > one @ far


def test_a_text_of_unknown_tokens_still_has_a_unit_vector(static_folder: Path) -> None:
    (vector,) = load_embedder(f"model2vec:{static_folder}").embed_passages(["\U0001f9ff\U0001f9ff"])
    assert np.isclose(np.linalg.norm(vector), 1)


# --- A server ----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint over the hashing embedder; the first answers may be `failures` instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures: list[tuple[int, dict[str, str], object]] = []
        self.asked: list[tuple[str | None, dict[str, Any]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.headers["Authorization"], body))
        if self.path != "/v1/embeddings":
            return self._answer(404, {}, {"error": {"message": f"no {self.path}"}})
        if self.server.failures:
            return self._answer(*self.server.failures.pop(0))
        vectors = HashingEmbedder(max_tokens=10_000).embed_passages(body["input"])
        rows = [{"index": place, "embedding": (3 * row).tolist()} for place, row in enumerate(vectors)]
        return self._answer(200, {}, {"data": rows[::-1]})  # the order is the client's to restore

    def _answer(self, status: int, headers: dict[str, str], body: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.address}/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
        monkeypatch.setattr(endpoint_module, "RETRY_SECONDS", (0.01, 0.01))
        yield running
        running.shutdown()


def test_an_endpoint_keeps_the_contract(server: Server) -> None:
    embedder = load_embedder("openai:text-embedding-3-small")
    check_embedder(embedder)
    assert embedder.dim == 64
    assert {key for key, _ in server.asked} == {"Bearer sk-secret-1"}
    assert {body["model"] for _, body in server.asked} == {"text-embedding-3-small"}


def test_many_texts_are_split_into_requests_and_returned_in_order(server: Server) -> None:
    texts = [f"word{number}" for number in range(150)]
    embedder = load_embedder("openai:m")
    assert np.allclose(embedder.embed_passages(texts), HashingEmbedder().embed_passages(texts), atol=1e-6)
    assert [len(body["input"]) for _, body in server.asked] == [64, 64, 22]
    assert embedder.dim == embedder.dim == 64
    assert len(server.asked) == 4  # the dimension is asked for once


def test_temporary_failures_are_retried(server: Server) -> None:
    server.failures = [(429, {"Retry-After": "0"}, {}), (503, {}, b"<html>")]
    assert load_embedder("openai:m").embed_queries(["boats"]).shape == (1, 64)
    server.failures = [(500, {}, {})] * 3
    with pytest.raises(EmbeddingError, match=r"from 127\.0\.0\.1: status 500"):
        load_embedder("openai:m").embed_queries(["boats"])
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {}, {"error": {"message": "Incorrect API key provided: sk-secret-1"}}), "status 401, Incorrect"),
        ((200, {}, {"data": []}), "shape"),
        ((200, {}, {"nothing": 1}), "cannot be read"),
        ((200, {}, {"data": [{"index": 0, "embedding": [None, None]}]}), "zeros or null"),
        ((200, {}, {"data": [{"index": 0, "embedding": [0, 0]}]}), "zeros or null"),
    ],
)
def test_permanent_failures_are_reported_at_once_and_without_the_key(
    server: Server, answer: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.failures = [answer]
    with caplog.at_level(logging.DEBUG), pytest.raises(EmbeddingError, match=said) as caught:
        load_embedder("openai:m").embed_queries(["boats"])
    assert len(server.asked) == 1
    assert "secret" not in str(caught.value) + caplog.text


def test_a_redirect_does_not_carry_the_key_away(server: Server) -> None:
    with Server() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        server.failures = [(302, {"Location": f"{other.address}/v1/embeddings"}, {})]
        with pytest.raises(EmbeddingError, match="status 302"):
            load_embedder("openai:m").embed_queries(["boats"])
        assert other.asked == []
        other.shutdown()


def test_an_unreachable_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr(endpoint_module, "RETRY_SECONDS", (0.01,))
    with pytest.raises(EmbeddingError, match="Connection refused"):
        load_embedder("openai:m").embed_queries(["boats"])


def test_a_text_that_is_too_long_is_not_sent(server: Server) -> None:
    with pytest.raises(TooLongError, match="question cannot be embedded: it has 300 tokens, and 'm' accepts 256"):
        load_embedder("openai:m").embed_queries(["word " * 300])
    assert server.asked == []


def test_a_collection_keeps_no_key_and_finds_its_endpoint_again(server: Server, docs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    Collection.open(folder, settings=Settings(), embedder="openai:m").sync(docs)
    hits = Collection.open(folder, settings=Settings()).search("dogs on Fridays", 1)
    assert hits[0].uri.endswith("pets.markdown")
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"openai:m" in kept
    assert b"secret" not in kept
