"""Forked processes: the child asks, embeds and computes, whatever the parent computed before."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.tiny_gguf import write_tiny

from ragfm.core.fork import reset_in_children

CHILDREN = 6
FORK = """
for _ in range({children}):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        assert work() == expected
        os._exit(0)
assert work() == expected
print("done")
"""
OPENMP = """
import faiss, numpy, torch
torch.ones(600, 600) @ torch.ones(600, 600)
faiss.omp_set_num_threads(2)
torch.set_num_threads(2)
index = faiss.IndexFlatIP(64)
index.add(numpy.ones((20000, 64), dtype=numpy.float32))
index.search(numpy.ones((500, 64), dtype=numpy.float32), 3)
"""


def fork_after(work: str, *arguments: str, children: int = CHILDREN) -> None:
    """Run `work`, which defines a function of that name, in a process and in processes that are forked from it."""
    code = f"import os, sys\n{work}\nexpected = work()\n{FORK.format(children=children)}"
    # Python 3.12 and later warn of forks in a process with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the child, too
        raise
    assert output == "done\n"
    assert process.returncode == 0


@pytest.mark.parametrize("openmp", ["", OPENMP], ids=["alone", "with torch and faiss"])
def test_a_reader_works_in_20_children(tmp_path: Path, openmp: str) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    work = f"""
from ragfm import Message, Sampling, load_reader
reader = load_reader(sys.argv[1], threads=2)
def work():
    {"import torch; torch.ones(600, 600) @ torch.ones(600, 600)" if openmp else ""}
    {"index.search(numpy.ones((500, 64), dtype=numpy.float32), 3)" if openmp else ""}
    return "".join(reader.stream([Message("user", "Hello")], Sampling(max_tokens=8)))
"""
    fork_after(openmp + work, str(tiny))


@pytest.mark.parametrize("backend", ["numpy-fp32", "openvino"])
def test_a_backend_of_an_embedding_model_works_in_a_child(backend: str) -> None:
    """With several batches, so that it uses several threads."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    fork_after(
        f"""
from ragfm.embedders import load_embedder
from ragfm.samples import handbook_text
embedder = load_embedder("bundled")
texts = embedder._tokenize([handbook_text()[start : start + 500] for start in range(0, 2400, 200)], "document")
backend = embedder._network.load("{backend}")
def work():
    vectors = backend(*texts)
    return [round(float(vectors[0] @ vector), 1) for vector in vectors]
""",
        children=1,
    )


@pytest.mark.slow
def test_asking_works_in_a_child(tmp_path: Path, docs: Path) -> None:
    fork_after(
        OPENMP
        + """
from ragfm import Collection, Rag
collection = Collection.open(sys.argv[1])
collection.sync(sys.argv[2])
rag = Rag(collection, reader="bundled")
def work():
    return rag.ask("When does the office open?").text
""",
        str(tmp_path / "collection"),
        str(docs),
        children=2,
    )


def test_objects_are_reset_in_children_while_they_exist() -> None:
    class Counted:
        def __init__(self) -> None:
            self.resets = 0
            self.lock = threading.Lock()
            reset_in_children(self)

        def reset_after_fork(self) -> None:
            self.resets += 1
            self.lock = threading.Lock()

    held, dropped = Counted(), Counted()
    held.lock.acquire()
    del dropped
    gc.collect()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        assert (held.resets, held.lock.locked()) == (0, True)
    else:
        os._exit(int((held.resets, held.lock.locked()) != (1, False)))
