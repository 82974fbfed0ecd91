"""The threads that llama.cpp computes in."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from support.judges import random_judge
from support.tiny_gguf import write_lora, write_tiny

from ragfm import Message, Sampling
from ragfm.core.errors import DamagedModelError
from ragfm.generation.readers import load_reader

COMPUTING = (
    "llama_model_load_from_file",  # some processors' weight formats are written in parallel
    "llama_adapter_lora_init",
    "llama_init_from_model",
    "llama_decode",
)
ROUNDS = 20
ASKED = [Message("user", "Hello")]


class ThreadWatch:
    """The threads that computed in llama.cpp, and whether torch had computed in one of them before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: dict[str, set[threading.Thread]] = {name: set() for name in COMPUTING}
        self.shared: list[str] = []
        self._local = threading.local()
        for name in COMPUTING:
            monkeypatch.setattr(llama_cpp, name, self._watched(name, getattr(llama_cpp, name)))
        import torch

        torch_bf16 = torch.ones(64, 64, dtype=torch.bfloat16)
        linear = torch.nn.functional.linear

        def marked(*args: Any) -> Any:
            self._local.torch = True
            return linear(*args)

        monkeypatch.setattr(torch.nn.functional, "linear", marked)
        self.use_torch = lambda: torch.nn.functional.linear(torch_bf16, torch_bf16)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.threads[name].add(threading.current_thread())
            if hasattr(self._local, "torch"):
                self.shared.append(f"{name} in {threading.current_thread().name}")
            return function(*args)

        return run


def test_llama_cpp_and_torch_never_compute_in_the_same_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN changes the matrix registers of a thread, with which llama.cpp then executes illegal instructions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    watch = ThreadWatch(monkeypatch)
    tiny = write_tiny(tmp_path / "tiny.gguf", context=1024)
    adapter = str(write_lora(tmp_path / "lora.gguf", layer=1, size=64))
    reader = load_reader(str(tiny), threads=2)
    judge = random_judge(tmp_path)
    entries: list[Callable[[], object]] = [
        lambda: list(reader.stream(ASKED, Sampling(max_tokens=4))),
        lambda: list(reader.stream(ASKED, Sampling(max_tokens=4, adapter=adapter))),
        lambda: reader.count_tokens(ASKED),
        lambda: judge.likelihoods("Is water wet?", ["Water is wet."]),
    ]
    for _ in range(ROUNDS):
        for entry in entries:
            watch.use_torch()
            entry()

    assert watch.shared == []
    assert all(watch.threads.values())  # none was missed
    computing = set[threading.Thread]().union(*watch.threads.values())
    assert threading.main_thread() not in computing
    assert {thread.name.split("_")[0] for thread in computing} == {"ragfm-reader", "ragfm-own"}


def test_ctrl_c_while_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_reader(str(tiny)).count_tokens(ASKED) > 1
    load = llama_cpp.llama_model_load_from_file
    main = threading.main_thread().ident

    def interrupted(*args: Any) -> Any:
        signal.pthread_kill(main, signal.SIGINT)  # type: ignore[arg-type]
        time.sleep(0.1)
        return load(*args)

    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_model_load_from_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_reader(str(tiny)).count_tokens(ASKED)
    assert load_reader(str(tiny)).count_tokens(ASKED) > 1


def test_errors_of_llama_cpp_reach_the_calling_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    monkeypatch.setattr("ragfm.models.llama_library.probe_model", lambda _: None)  # otherwise it finds the damage
    tiny.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(DamagedModelError, match=r"cannot load '.*tiny.gguf': .*failed to load model"):
        load_reader(str(tiny)).count_tokens(ASKED)
