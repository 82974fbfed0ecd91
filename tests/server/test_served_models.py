"""Served models: which readers are loaded, and how many answers run at once."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.running_server import SlowReader, eventually, make_collection, serve
from support.tiny_gguf import write_tiny

import ragfm.rag
from ragfm.answering.grounding import Grounding
from ragfm.core.errors import ConfigError
from ragfm.core.types import Message
from ragfm.generation.answer_log import Origin
from ragfm.server import served_models
from ragfm.server.api_keys import Key
from ragfm.server.served_models import ServedModels
from ragfm.store.collection_store import _shared_embedder
from ragfm.testing import ScriptedReader


def test_collections_share_a_reader_of_the_same_model_and_options_whatever_its_name_is(tmp_path: Path) -> None:
    for name in "abc":
        make_collection(tmp_path / name)
    folders = [(name, tmp_path / name / "handbook") for name in "abc"]
    (tmp_path / "c" / "ragfm.toml").write_text("[ask]\ncontext_tokens = 300\n")
    tiny = write_tiny(tmp_path / "tiny.gguf")
    also = os.path.relpath(tiny)
    served = ServedModels(folders, [("tiny", str(tiny)), ("also", f"llama-cpp:{also}")])
    readers = {name: model.rag.base_reader for name, model in served.models.items()}
    assert len({id(reader) for reader in readers.values()}) == 2  # c's has another window
    assert readers["a"] is readers["b:also"]
    assert readers["c"].context_tokens == 300
    assert len(served.queues) == 6  # four of them are for computing, embeddings, documents and uploads


def test_collections_share_an_embedder_of_the_same_contract(tmp_path: Path) -> None:
    served = ServedModels(
        [(name, make_collection(tmp_path / name)) for name in "ab"], [("script", ScriptedReader(["Yes."]))]
    )
    one, other = (served.models[name].rag.collection for name in "ab")
    assert one.embedder is other.embedder
    assert _shared_embedder("hashing", one.contract) is one.embedder
    assert _shared_embedder("hashing", {**one.contract, "weights": "others"}) is not one.embedder


def test_computing_counts_for_the_share_of_the_reader_of_a_key(tmp_path: Path) -> None:
    served = ServedModels([("handbook", make_collection(tmp_path))], [("tiny", str(write_tiny(tmp_path / "t.gguf")))])
    model, keys = served.models["handbook"], [Key(name="one"), Key(name="two")]
    model.rag.base_reader.count_tokens([Message("user", "Load the model.")])
    asyncio.run(served.compute(keys[0], time.sleep, 0.2))
    rags = [model.rag.with_options(collection=model.handle(key), origin=Origin(key.name)) for key in keys]
    scopes = [rag.reader._scope for rag in rags]  # type: ignore[attr-defined]
    shares = model.rag.base_reader._engine.batcher._loop.shares.of_each(scopes)  # type: ignore[attr-defined]
    assert shares[scopes[0]] > 0.1
    assert shares[scopes[1]] == 0
    served.close()


def test_as_many_answers_run_at_once_as_the_reader_has_slots(tmp_path: Path) -> None:
    folder = make_collection(tmp_path)
    (tmp_path / "ragfm.toml").write_text("[reader_options.llama-cpp]\nslots = 3\n")
    readers = [("own", str(write_tiny(tmp_path / "tiny.gguf"))), ("script", ScriptedReader(["Yes."]))]
    served = ServedModels([("handbook", folder)], readers)
    assert [served.models[name].queue.slots for name in ("handbook", "handbook:script")] == [3, 1]


def test_readyz_waits_for_the_models(tmp_path: Path) -> None:
    class Loading(ScriptedReader):
        loaded = threading.Event()

        def count_tokens(self, messages: Sequence[Message]) -> int:
            assert self.loaded.wait(60)
            return super().count_tokens(messages)

    reader = Loading(["Yes."])
    gc.unfreeze()
    with serve(tmp_path, reader) as it, it.client(None) as client:
        assert client.get("/healthz").status_code == client.head("/healthz").status_code == 200
        waiting = client.get("/readyz")
        assert (waiting.status_code, waiting.json()) == (503, {"status": "loading models"})
        head = client.head("/readyz")
        assert (head.status_code, head.content) == (503, b"")
        reader.loaded.set()
        assert eventually(lambda: client.get("/readyz").status_code == 200, 300)
        assert gc.get_freeze_count() > 10_000  # garbage collections look through later objects only


def test_two_collections_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = make_collection(tmp_path)
    with pytest.raises(ConfigError, match="Two collections are named"):
        ServedModels([("a", folder), ("a", folder)], [("script", ScriptedReader(["Yes."]))])


def test_two_readers_of_one_name_are_refused(tmp_path: Path) -> None:
    readers = [("script", ScriptedReader(["Yes."])), ("script", ScriptedReader(["No."]))]
    with pytest.raises(ConfigError, match="Two readers are named 'script'"):
        ServedModels([("a", make_collection(tmp_path))], readers)


def test_a_key_with_more_requests_waiting_computes_at_a_lower_priority(tmp_path: Path) -> None:
    served = ServedModels([("handbook", make_collection(tmp_path))], [("script", ScriptedReader(["Yes."]))])

    def priority() -> int:
        time.sleep(0.05)  # so that the requests meet
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def compute() -> tuple[list[int], list[int]]:
        heavy = [asyncio.ensure_future(served.compute(Key(name="heavy"), priority)) for _ in range(4)]
        await asyncio.sleep(0.01)
        light = [await served.compute(Key(name="light"), priority) for _ in range(3)]
        return await asyncio.gather(*heavy), light

    heavy, light = asyncio.run(compute())
    served.close()
    normal = os.getpriority(os.PRIO_PROCESS, 0)
    assert light == [normal] * 3
    # The first did not know of others, and the last has none behind it.
    assert heavy == [normal, min(19, normal + 5), min(19, normal + 5), normal]


def test_the_checks_of_a_keys_answers_use_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge reads passages: a key with many answers must not delay the check of another's."""
    monkeypatch.setattr(served_models, "_COMPUTE_SLOTS", 2)
    cite, checking, may_end = ragfm.rag.cite_answer, list[str](), threading.Event()

    def slow_for_hr(grounding: Grounding, *args: Any, **options: Any) -> Any:
        checking.append(grounding.question)
        assert "hr" not in grounding.question or may_end.wait(60)
        return cite(grounding, *args, **options)

    monkeypatch.setattr(ragfm.rag, "cite_answer", slow_for_hr)
    with serve(tmp_path, SlowReader(slots=4, words=2)) as it, ThreadPoolExecutor(2) as pool:

        def ask(key: str) -> int:
            messages = [{"role": "user", "content": f"How many days of leave are there, asks {key}?"}]
            body = {"model": "handbook", "messages": messages}
            return it.client(key).post("/v1/chat/completions", json=body).status_code

        of_hr = [pool.submit(ask, "hr") for _ in range(2)]
        compute = it.app.state.service.served.compute_queue
        eventually(lambda: len(checking) == 1 and compute.waiting == 1)
        assert it.app.state.service.running == 2  # an answer that is checked counts once
        assert ask("guest") == 200
        assert len(checking) == 2  # the second answer of `hr` still waits
        may_end.set()
        assert [answer.result() for answer in of_hr] == [200, 200]
    assert len(checking) == 3
