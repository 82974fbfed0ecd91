"""The backends of a BERT: their vectors compared with sentence-transformers, and when each is used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ragfm.core.errors import TooLongError
from ragfm.embedders import SentenceTransformerEmbedder, sentence_transformer
from ragfm.embedders.bert import read_weights
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.embedders.networks import BertNetwork, LibraryNetwork
from ragfm.embedders.sentence_transformer import MIN_COSINE
from ragfm.embedders.sorted_batches import Batch, BertBackend
from ragfm.models.hardware import compute_threads, physical_cores
from ragfm.models.model_lookup import find_model
from ragfm.models.recommended import RECOMMENDED_EMBEDDERS
from ragfm.testing import check_embedder

TEXTS = ["x", "Naïve café, 日本語 and 😀.", "One more, which is somewhat longer.", "word " * 254, "[SEP] a [MASK]"]


@pytest.fixture(scope="module")
def bundled() -> Path:
    return find_model("bundled", "embedder")


@pytest.fixture(scope="module")
def reference(bundled: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(bundled), device="cpu", local_files_only=True)


def tiny(
    folder: Path,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    dense: bool = False,
    activation: Any = None,
) -> Path:
    """A BERT of 2 small layers with random weights, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    config = BertConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        layer_norm_eps=1e-3,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(find_model("bundled", "embedder")).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(48, pooling)]
    modules += [Dense(48, 96, activation_function=activation)] if dense else []
    modules += [Normalize()] if normalize else []
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def test_texts_are_lowercased_if_the_folder_says_so(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    setting, normalizer = path / "sentence_bert_config.json", path / "tokenizer.json"
    setting.write_text(json.dumps({**json.loads(setting.read_text()), "do_lower_case": True}))
    tokenizer = json.loads(normalizer.read_text())
    tokenizer["normalizer"]["lowercase"] = False
    normalizer.write_text(json.dumps(tokenizer))
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "do_lower_case": False}))
    ours = SentenceTransformerEmbedder(str(path))
    assert isinstance(ours._network, BertNetwork)
    theirs = LibraryNetwork(path, str(path))
    text = "The İstanbul ÉCOLE"
    ids = theirs.tokenizer.encode(text).ids
    assert ours._network.tokenizer.encode(text).ids == ids
    assert ours._network.tokenizer.encode(text.lower()).ids == ids


BACKENDS = ["numpy-fp32", *(["openvino", "openvino-fp32"] if find_spec("openvino") else [])]


@pytest.mark.parametrize("name", BACKENDS)
def test_each_backend_gives_the_vectors_of_sentence_transformers(name: str, bundled: Path, reference: Any) -> None:
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    folder = read_bert_folder(bundled)
    assert folder is not None
    network = BertNetwork(folder)
    ids = [encoding.ids for encoding in network.tokenizer.encode_batch(TEXTS)]
    assert ids == [row for text in TEXTS for row in reference.tokenizer([text])["input_ids"]]
    found = network.load(name)(TEXTS, "", ids)
    lowest = (found * expected).sum(1).min()
    assert lowest > (0.999999 if "fp32" in name else MIN_COSINE)


def tiny_mpnet(folder: Path) -> Path:
    """An MPNet of 2 small layers with random weights, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

    words = find_model("bundled", "embedder") / "vocab.txt"
    special = ["<s>", "<pad>", "</s>", "<mask>", "[UNK]"]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys([*special, *words.read_text().splitlines()]))}
    config = MPNetConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=386,
        initializer_range=0.3,
    )
    MPNetModel(config).save_pretrained(folder / "mpnet")
    MPNetTokenizer(vocab=vocabulary, model_max_length=384).save_pretrained(folder / "mpnet")
    modules = [Transformer(str(folder / "mpnet")), Pooling(48), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.mark.parametrize("name", BACKENDS)
def test_each_backend_runs_mpnet(name: str, tmp_path: Path) -> None:
    path = tiny_mpnet(tmp_path)
    folder = read_bert_folder(path)
    assert folder is not None
    network, library = BertNetwork(folder), LibraryNetwork(path, str(path))
    ids = [encoding.ids for encoding in network.tokenizer.encode_batch(TEXTS)]
    assert ids == [encoding.ids for encoding in library.tokenizer.encode_batch(TEXTS)]
    lowest = (network.load(name)(TEXTS, "", ids) * library.load("fp32")(TEXTS, "", ids)).sum(1).min()
    assert lowest > (0.99999 if "fp32" in name else 0.99)  # bf16 has large errors where weights are random


QUERY = {"query": "Represent this sentence for searching relevant passages: "}
LAYOUTS: dict[str, dict[str, Any]] = {
    "MongoDB/mdbr-leaf-ir": {"dense": True, "prompts": QUERY},
    "Snowflake/snowflake-arctic-embed-s": {"pooling": "cls", "prompts": QUERY},
    "BAAI/bge-small-en-v1.5": {"pooling": "cls"},
    "Snowflake/snowflake-arctic-embed-xs": {"pooling": "cls", "prompts": QUERY},
    "sentence-transformers/all-mpnet-base-v2": {},  # see `tiny_mpnet`
    "bundled": {},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_recommended_layout_runs_as_in_sentence_transformers(name: str, tmp_path: Path) -> None:
    assert [model["repository"] for model in RECOMMENDED_EMBEDDERS] == list(LAYOUTS)
    path = tiny_mpnet(tmp_path) if "mpnet" in name else tiny(tmp_path, **LAYOUTS[name])
    setting = path / "sentence_bert_config.json"
    if "Snowflake" in name:
        setting.write_text(json.dumps({"max_seq_length": 60, "model_args": {"add_pooling_layer": False}}))
    embedder, library = SentenceTransformerEmbedder(str(path)), LibraryNetwork(path, str(path))
    assert isinstance(embedder._network, BertNetwork)  # without torch
    check_embedder(embedder)
    assert (embedder.dim, embedder.fingerprint["pooling"]) == (library.dim, library.pooling)
    texts = ["x", "One more, which is somewhat longer."]
    for embed, kind in ((embedder.embed_queries, "query"), (embedder.embed_passages, "document")):
        expected = library.load("fp32")(texts, library.prompts.get(kind, ""), [])
        assert (embed(texts) * expected).sum(1).min() > 0.99999
    if "openvino-fp32" in BACKENDS and "dense" in LAYOUTS[name]:
        ids = [encoding.ids for encoding in embedder._network.tokenizer.encode_batch(texts)]
        found = embedder._network.load("openvino-fp32")(texts, "", ids)
        assert (found * expected).sum(1).min() > 0.99999


def test_a_layer_that_is_not_linear_is_left_to_the_library(tmp_path: Path) -> None:
    from torch import nn

    assert read_bert_folder(tiny(tmp_path, dense=True, activation=nn.Tanh())) is None


class _Recorded(BertBackend):
    batch_tokens = 100

    def __init__(self, parallel_batches: int) -> None:
        self.parallel_batches = parallel_batches
        self.sizes: list[int] = []

    def run(self, batches: Iterable[Batch]) -> Iterable[NDArray[np.float32]]:
        for ids, _ in batches:
            self.sizes.append(len(ids))
            yield ids.astype(np.float32)[..., None]


@pytest.mark.parametrize(
    ("parallel", "texts", "sizes"), [(1, 8, [8]), (2, 8, [4, 4]), (16, 3, [1, 1, 1]), (2, 30, [10, 10, 10])]
)
def test_no_core_is_idle_while_there_are_texts(parallel: int, texts: int, sizes: list[int]) -> None:
    backend = _Recorded(parallel)
    states = backend.token_states([[row] * 10 for row in range(texts)])
    assert backend.sizes == sizes
    assert [int(row[0, 0]) for row in states] == list(range(texts))


@pytest.mark.parametrize("changes", [{}, {"pooling": "cls"}, {"normalize": False}, {"prompts": {"query": "ask: "}}])
def test_other_berts_have_the_vectors_and_contract_of_the_library(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tiny(tmp_path, **changes)
    ours = SentenceTransformerEmbedder(str(path))
    assert isinstance(ours._network, BertNetwork)
    theirs = SentenceTransformerEmbedder(str(path))
    theirs._network = LibraryNetwork(path, str(path))
    assert dict(ours.fingerprint) == dict(theirs.fingerprint)
    for one, other in ((ours.embed_passages, theirs.embed_passages), (ours.embed_queries, theirs.embed_queries)):
        assert np.allclose(one(TEXTS[:3]), other(TEXTS[:3]), atol=1e-5)
    check_embedder(ours)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"hidden_act": "gelu_new"}),
        ("config.json", {"model_type": "mpnet"}),
        ("config.json", {"position_embedding_type": "relative_key"}),
        ("sentence_bert_config.json", {"anything": "new"}),
        ("sentence_bert_config.json", {"max_seq_length": 1024}),
        ("1_Pooling/config.json", {"pooling_mode": "max"}),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"}),
    ],
)
def test_a_folder_with_unknown_settings_is_run_by_the_library(
    bundled: Path, tmp_path: Path, file: str, changes: dict[str, Any]
) -> None:
    sources = ["config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"]
    for source in [*sources, "tokenizer.json", "tokenizer_config.json"]:
        (tmp_path / source).parent.mkdir(exist_ok=True)
        (tmp_path / source).write_text((bundled / source).read_text())
    assert read_bert_folder(tmp_path) is not None
    (tmp_path / file).write_text(json.dumps({**json.loads((tmp_path / file).read_text()), **changes}))
    assert read_bert_folder(tmp_path) is None


@pytest.mark.slow
def test_the_library_network_keeps_the_contract(bundled: Path) -> None:
    embedder = SentenceTransformerEmbedder("bundled")
    direct = dict(embedder.fingerprint)
    embedder = SentenceTransformerEmbedder("bundled")
    embedder._network = LibraryNetwork(bundled, "bundled")
    assert dict(embedder.fingerprint) == direct
    check_embedder(embedder)
    with pytest.raises(TooLongError, match="passage cannot be embedded: it has 300 tokens, and 'bundled' accepts 254"):
        embedder.embed_passages(["word " * 300])


def test_the_contract_of_the_bundled_model() -> None:
    assert dict(SentenceTransformerEmbedder("bundled").fingerprint) == {
        "model": "bundled",
        "weights": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "dim": 384,
        "pooling": '[{"embedding_dimension": 384, "include_prompt": true, "pooling_mode": "mean"}, '
        '{"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}]',
        "query_prompt": "",
        "passage_prompt": "",
        "max_tokens": 254,
    }


def test_a_question_is_embedded_without_importing_large_libraries() -> None:
    code = (
        "import sys; from ragfm import load_embedder; load_embedder().embed_queries(['boats']); "
        "print({'torch', 'transformers', 'sentence_transformers', 'openvino'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


class Recorder(BertBackend):
    """Returns the first token and the length of each text, and records the shapes of the batches."""

    batch_tokens, length_multiple = 30, 4

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def run(self, batches: Any) -> Any:
        for tokens, mask in batches:
            self.seen.append(tokens.shape)
            assert np.array_equal(tokens > 0, mask > 0)
            yield np.stack([tokens.max(1), mask.sum(1)], axis=1).astype(np.float32)


def test_batches_keep_the_order_and_the_budget() -> None:
    ids = [[n] * (1 + n * 7 % 13) for n in range(1, 40)]
    backend = Recorder()
    vectors = backend(ids)
    expected = np.array([[row[0], len(row)] for row in ids], dtype=np.float32)
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert all(width % 4 == 0 and texts * width <= 30 for texts, width in backend.seen)
    assert backend.seen == sorted(backend.seen, key=lambda shape: -shape[1])
    assert backend([[1] * 100]).shape == (1, 2)


# --- When each backend is used -----------------------------------------------------------------------------------


class _Network:
    """Simulated backends; the fast one has an angle to the exact one."""

    window, dim, pooling, prompts = 256, 2, "", {}
    exact_backend, fast_exact_backend, fast_backend = "exact", "fast exact", "fast"

    def __init__(self, angle: float) -> None:
        self.angle = angle
        self.loaded: list[str] = []

    @property
    def tokenizer(self) -> Any:
        return BertNetwork(read_bert_folder(find_model("bundled", "embedder"))).tokenizer  # type: ignore[arg-type]

    def load(self, name: str) -> Any:
        self.loaded.append(name)
        angle = self.angle if name == "fast" else 0.0
        return lambda texts, *_: np.tile(np.float32([np.cos(angle), np.sin(angle)]), (len(texts), 1))


def embedder(network: Any) -> SentenceTransformerEmbedder:
    made = SentenceTransformerEmbedder("bundled")
    made._network = network
    return made


@pytest.mark.parametrize(
    ("angle", "loaded"), [(0.04, ["fast"]), (0.05, ["fast", "fast exact"]), (np.nan, ["fast", "fast exact"])]
)
def test_many_passages_use_the_fast_backend_if_it_is_precise_enough(angle: float, loaded: list[str]) -> None:
    made = embedder(network := _Network(angle))
    made.embed_passages(["a few words"] * 10)
    assert network.loaded == ["exact"]
    vectors = made.embed_passages(["word " * 250] * 10)
    assert network.loaded == ["exact", *loaded]
    assert vectors[0, 1] == pytest.approx(np.sin(angle) if len(loaded) == 1 else 0)
    assert made.embed_queries(["boats"])[0, 1] == 0  # exact, always
    made.warm_up()
    assert network.loaded == ["exact", *loaded]


def test_a_warm_embedder_leaves_numpy_and_gives_the_same_vectors(bundled: Path) -> None:
    pytest.importorskip("openvino")
    texts = ["How many days of leave are there?", "Who approves travel?"]
    cold = SentenceTransformerEmbedder(str(bundled)).embed_queries(texts)
    warm = SentenceTransformerEmbedder(str(bundled))
    warm.warm_up()
    np.testing.assert_allclose(warm.embed_queries(texts), cold, atol=1e-6)
    assert (warm.embed_passages(texts) * cold).sum(1).min() > MIN_COSINE
    assert warm._for_queries is not warm._exact


def test_many_queries_load_openvino_without_warming_up(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(sentence_transformer, "MIN_QUERIES_TO_LOAD", 4)
    texts, loaded = ["How many days of leave are there?", "Who approves travel?"], list[str]()
    made = SentenceTransformerEmbedder(str(bundled))
    load = made._network.load
    monkeypatch.setattr(made._network, "load", lambda name: loaded.append(name) or load(name))
    first = made.embed_queries(texts)
    assert loaded == ["numpy-fp32"]
    later = [made.embed_queries(texts) for _ in range(3)]
    assert loaded == ["numpy-fp32", "openvino-fp32"]
    for vectors in later:
        np.testing.assert_allclose(vectors, first, atol=1e-6)


def test_two_threads_embed_a_question(bundled: Path) -> None:
    bert_openvino = pytest.importorskip("ragfm.embedders.bert_openvino")
    folder = read_bert_folder(bundled)
    assert folder is not None
    compiled = bert_openvino.OpenVinoBackend(folder, read_weights(bundled), for_passages=False)._compiled
    threads = min(compute_threads(), physical_cores())
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("NUM_STREAMS") == max(1, threads // 2)


def test_ctrl_c_works_after_another_thread_has_freed_the_model() -> None:
    pytest.importorskip("openvino")
    code = """
import faulthandler, signal, threading
from ragfm.embedders import load_embedder
faulthandler.enable()  # as pytest does: its signal stack is replaced, too
backends = [load_embedder("bundled")._network.load("openvino-fp32")]
thread = threading.Thread(target=backends.clear)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_openvino_sends_no_telemetry_and_forks_nothing() -> None:
    """It would at import, to Google Analytics, from a forked process."""
    pytest.importorskip("openvino")
    code = (
        "import multiprocessing.process, os, sys\n"
        "multiprocessing.process.BaseProcess.start = os.fork = lambda *_: os._exit(3)\n"
        "from ragfm.embedders.bert_openvino import openvino\n"
        "assert openvino.Core()\n"
        "assert not [name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_queries_use_the_exact_backend_without_a_working_openvino(
    bundled: Path, broken_openvino: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentence_transformer, "MIN_QUERIES_TO_LOAD", 1)
    made = SentenceTransformerEmbedder(str(bundled))
    for _ in range(2):
        assert made.embed_queries(["Who approves travel?"]).shape == (1, 384)
    assert made._for_queries is made._exact


def test_an_embedder_warms_up_without_a_working_openvino(bundled: Path, broken_openvino: None) -> None:
    texts = ["How many days of leave are there?"]
    cold = SentenceTransformerEmbedder(str(bundled)).embed_queries(texts)
    warm = SentenceTransformerEmbedder(str(bundled))
    warm.warm_up()
    np.testing.assert_array_equal(warm.embed_queries(texts), cold)
    np.testing.assert_array_equal(warm.embed_passages(texts), cold)
