"""Parsing in worker processes: a document that breaks its parser breaks nothing else."""

from __future__ import annotations

import cProfile
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.openai_server import wait_until

from ragfm import Collection
from ragfm.core.errors import MissingExtraError, ParseError, SkipDocument, WorkerError
from ragfm.core.types import Blob, Document
from ragfm.parsing.sandbox import worker_process, worker_protocol
from ragfm.parsing.sandbox.worker_pool import WorkerPool, remove_orphaned_folders, shared_worker_pool
from ragfm.parsing.sandbox.worker_process import BOOT, Limits
from ragfm.testing import HashingEmbedder

pytestmark = pytest.mark.timing

if TYPE_CHECKING:
    from ragfm.core.types import Vectors

# A worker whose parser executes the code after `DO:` in a document, and returns the value of `output` as its text.
_EXECUTING_WORKER = BOOT.replace(
    "main(*arguments)",
    """
import ctypes, json, os, socket, time
import ragfm.parsing.sandbox.worker_main as worker
from ragfm.parsing import heartbeat
from ragfm.core.types import Document
heartbeat._INTERVAL = 0.1
real = worker.parse

def parse(blob, uri, choice):
    _, _, code = blob.data.decode("utf-8", "replace").partition("DO:")
    names = {"output": ""}
    exec(code, globals(), names)
    return Document(uri, str(names["output"]), "text/html") if code else real(blob, uri, choice)

worker.parse = parse
main(*arguments)
""",
)


def _code(code: str) -> Blob:
    return Blob(f"<html>DO:{code}".encode())


def _page(text: str) -> Blob:
    return Blob(f"<html><body><p>{text}</p></body></html>".encode(), None, {"year": 2026})


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    monkeypatch.setattr(worker_process, "BOOT", _EXECUTING_WORKER)
    limits = Limits(stall_seconds=2, seconds=5, seconds_per_mib=0, memory=300 << 20, model_memory=600 << 20)
    pool = WorkerPool(limits, 1)
    yield pool
    pool.close()


def test_a_document_comes_as_it_was_parsed(pool: WorkerPool) -> None:
    page = Blob(b"<html><title>Dogs</title><body><h1>Pets \xf0\x9f\x90\x95</h1><p>Dogs.", None, {"year": 2026})
    document = pool.submit(page, "docs/pets.html").result()
    assert (document.uri, document.text) == ("docs/pets.html", "# Pets 🐕\n\nDogs.")
    assert document.metadata == {"year": 2026, "title": "Dogs"}
    assert [(mark.kind, mark.value, mark.level) for mark in document.marks] == [("heading", "Pets 🐕", 1)]


FAILURES = (
    ("ctypes.string_at(0)", r"crashed \(SIGSEGV\)"),
    ("os.abort()", r"crashed \(SIGABRT\)"),
    ("os._exit(3)", "ended with status 3"),
    ("os.kill(os.getpid(), 9)", "killed by the system, possibly for lack of memory"),
    ("while True: pass", "no progress for 2 s"),
    ("for _ in range(100): heartbeat.beat(); time.sleep(0.1)", "did not finish within 5 s"),
    ("x = [bytearray(1 << 20) for _ in range(1000)]", r"over 0\.29\d* GiB of memory"),
    ("x = bytearray(1 << 40)", r"over 0\.29\d* GiB of memory"),
    ("ctypes.CDLL(None).sleep(9)", "no progress"),
    ("raise LookupError('of its own')", "LookupError: of its own"),
    ("raise SystemExit(0)", "ended with status 0"),
)


def test_documents_fail_alone(pool: WorkerPool) -> None:
    futures = [
        (pool.submit(_code(code), "docs/bad.html"), reason, pool.submit(_page(reason), "docs/good.html"))
        for code, reason in FAILURES
    ]
    for bad, reason, good in futures:
        with pytest.raises(ParseError, match=reason):
            bad.result()
        assert good.result().text == reason


def test_heartbeats_and_models_raise_the_limits(pool: WorkerPool) -> None:
    assert pool.submit(_code("for _ in range(25): heartbeat.beat(); time.sleep(0.1)"), "a.html").result().text == ""
    code = "heartbeat.announce('model'); x = [bytearray(1 << 20) for _ in range(400)]; time.sleep(0.3); output = len(x)"
    assert pool.submit(_code(code), "a.html").result().text == "400"


def test_output_and_input_of_a_parser_do_not_disturb_the_protocol(pool: WorkerPool) -> None:
    code = "import sys; print('x' * 99999, flush=True); os.write(1, b'd' * 99); os.write(2, b'e'); "
    code += "output = sys.stdin.read()"
    assert pool.submit(_code(code), "a.html").result().text == ""
    assert pool.submit(_page("next"), "b.html").result().text == "next"


def test_errors_keep_their_kind() -> None:
    for error in (SkipDocument("a is empty."), MissingExtraError("DOCX needs x.", "Install it."), ParseError("b")):
        frame = next(worker_protocol.FrameReader().feed(worker_protocol.pack_error(error)))
        again = worker_protocol.unpack_error(frame.fields)
        assert (type(again), again.message, again.hint) == (type(error), error.message, error.hint)


@pytest.mark.parametrize(
    "fields",
    [
        ["text/plain", {}, [["page", 0, 9, "1", 0]]],
        ["text/plain", {}, [["page", 2, 1, "1", 0]]],
        ["text/plain", {}, [["page", True, 1, "1", 0]]],
        ["text/plain", {}, [["other", 0, 1, "1", 0]]],
        ["text/plain", {}, [[]]],
        ["text/plain", {"a": []}, []],
        [1, {}, []],
        {},
        None,
    ],
)
def test_an_invalid_document_is_refused(fields: object) -> None:
    frame = next(worker_protocol.FrameReader().feed(worker_protocol.pack(worker_protocol.DOCUMENT, fields, b"text")))
    with pytest.raises((ValueError, TypeError)):
        worker_protocol.unpack_document(frame, Blob(b""), "a")


def test_a_worker_can_neither_write_read_nor_connect(pool: WorkerPool, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    listener = socket.create_server(("127.0.0.1", 0))
    attempts = {
        "write": f"open({str(tmp_path / 'new')!r}, 'w')",
        "change": f"open({str(tmp_path / 'secret')!r}, 'a')",
        "truncate": f"os.truncate({str(tmp_path / 'secret')!r}, 0)",
        "remove": f"os.remove({str(tmp_path / 'secret')!r})",
        "link": f"os.link({str(tmp_path / 'secret')!r}, 'here')",
        "next to it": "open(os.path.dirname(os.getcwd()) + '/ragfm-outside', 'w')",
        "read": f"open({str(tmp_path / 'secret')!r})",
        "list": f"os.listdir({str(tmp_path)!r})",
        "symlink": f"(os.symlink({str(tmp_path / 'secret')!r}, 'way'), open('way'))",
        "environment": f"open('/proc/{os.getpid()}/environ').read()",
        "passwords": "open('/etc/passwd')",
        "connect": f"socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 1)",
        "datagram": "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "local": "socket.socket(socket.AF_UNIX).connect('/dev/log')",
        "signal": f"os.kill({os.getpid()}, 0)",
        "trace": f"(_ for _ in ()).throw(OSError) if ctypes.CDLL(None).ptrace(16, {os.getpid()}, 0, 0) < 0 else None",
    }
    code = f"""
outcomes = {{}}
for name, attempt in {attempts!r}.items():
    try:
        eval(attempt)
        outcomes[name] = "done"
    except OSError as error:
        outcomes[name] = "refused"
open("own", "w").write("x"); os.mkdir("folder"); os.rename("own", "folder/own")
import tempfile, subprocess
tempfile.TemporaryFile().write(b"x")
outcomes["child"] = subprocess.run(["cat", {str(tmp_path / "secret")!r}], capture_output=True).stdout.decode()
outcomes["token"] = os.environ.get("SECRET_TOKEN", "")
output = json.dumps(outcomes)
"""
    os.environ["SECRET_TOKEN"] = "canary"
    try:
        outcomes = json.loads(pool.submit(_code(code), "a.html").result().text)
    finally:
        del os.environ["SECRET_TOKEN"]
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or libc.syscall(444, None, ctypes.c_size_t(0), 1) < 6 or libc.prctl(21, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel does not have all protections")
    assert {"limits", "supervisor", "capabilities", "landlock", "seccomp"} <= {*next(iter(pool._processes)).protections}
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in ("refused", "")} == {}
    assert (tmp_path / "secret").read_text() == "canary"


def test_the_main_script_may_be_one_of_python(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `python -m cProfile`: its folder is the standard library."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", cProfile.__file__, raising=False)
    assert pool.submit(_code("output = 'parsed'"), "a.html").result().text == "parsed"


def test_the_folder_of_a_worker_is_removed_with_it(pool: WorkerPool) -> None:
    folder = pool.submit(_code("open('left', 'w').write('x'); output = os.getcwd()"), "a.html").result().text
    assert Path(folder, "left").exists()
    pool.close()
    assert not Path(folder).exists()


def test_a_worker_imports_what_parsing_needs(pool: WorkerPool) -> None:
    loaded = pool.submit(_code("import sys; output = ' '.join(sys.modules)"), "a.html").result().text.split()
    heavy = {"torch", "numpy", "faiss", "sqlalchemy", "pydantic", "transformers", "unstructured", "ssl", "asyncio"}
    assert not heavy & {*loaded}


def test_a_process_is_replaced_after_its_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "BOOT", _EXECUTING_WORKER)
    workers = WorkerPool(Limits(max_documents=2), 1)
    folders = [workers.submit(_code("output = os.getcwd()"), "a.html").result().text for _ in range(4)]
    workers.close()
    assert folders[0] == folders[1] != folders[2] == folders[3]


def test_a_worker_that_cannot_start_ends_the_sync(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "BOOT", "raise ImportError('no such thing')")
    monkeypatch.setattr("ragfm.parsing.sandbox.worker_pool._shared", None)
    (docs / "page.html").write_text("<p>A page.")
    with pytest.raises(WorkerError, match="ImportError: no such thing"):
        collection.sync(docs)
    shared_worker_pool().close()


def test_cancelling_a_document_frees_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "BOOT", _EXECUTING_WORKER)
    workers = WorkerPool(count=1)
    slow, waiting = workers.submit(_code("time.sleep(99)"), "a.html"), workers.submit(_page("x"), "b.html")
    time.sleep(0.3)
    slow.cancel()
    assert waiting.result(timeout=30).text == "x"
    workers.close()


def test_a_fork_starts_its_own_workers() -> None:
    assert shared_worker_pool().submit(_page("before"), "a.html").result().text == "before"
    pid = os.fork()
    if not pid:
        try:
            text = shared_worker_pool().submit(_page("child"), "a.html").result(60).text
            shared_worker_pool().close()
            os._exit(0 if text == "child" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert shared_worker_pool().submit(_page("after"), "a.html").result().text == "after"


_SCRIPT = """
import os, sys, threading
from ragfm.parsing.sandbox import worker_process
worker_process.BOOT = {boot!r}
from ragfm.parsing.sandbox.worker_pool import shared_worker_pool
from ragfm.core.types import Blob
workers = shared_worker_pool()
print(workers.submit(Blob(b"<html>DO:output = os.readlink('/proc/self')"), "a.html").result().text)
print(workers.submit(Blob(b"<html>DO:output = os.getcwd()"), "a.html").result().text, flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "number", "status"),
    [
        ("", None, 0),
        ("sys.exit(4)", None, 4),
        ("workers.submit(Blob(b'<html>DO:time.sleep(99)'), 'b.html')", None, 0),
        ("workers.submit(Blob(b'<html>DO:time.sleep(99)'), 'b.html').result()", signal.SIGINT, -signal.SIGINT),
        ("workers.submit(Blob(b'<html>DO:ctypes.CDLL(None).sleep(99)'), 'b.html').result()", signal.SIGKILL, -9),
        ("os.abort()", None, -signal.SIGABRT),
    ],
)
def test_no_process_outlives_its_parent(tmp_path: Path, then: str, number: int | None, status: int) -> None:
    script = tmp_path / "script.py"  # without `if __name__ == "__main__"`
    script.write_text(_SCRIPT.format(boot=_EXECUTING_WORKER, then=then))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker, folder = int(parent.stdout.readline()), parent.stdout.readline().strip()
    if number is not None:
        time.sleep(0.3)
        parent.send_signal(number)
    assert parent.wait(60) == status, parent.stderr and parent.stderr.read()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    remove_orphaned_folders()  # done by the next process that parses
    assert not Path(folder).exists()
    parent.communicate()


def test_a_sync_continues_after_hostile_documents(
    collection: Collection, docs: Path, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.parsing.sandbox.worker_pool._shared", pool)
    (docs / "crash.html").write_bytes(_code("ctypes.string_at(0)").data)
    (docs / "hang.html").write_bytes(_code("while True: pass").data)
    report = collection.sync(docs)
    assert report.added == 4
    assert [(failed.uri, failed.stage) for failed in report.failed] == [
        ("docs/crash.html", "parse"),
        ("docs/hang.html", "parse"),
    ]
    assert "crash.html cannot be parsed: its parser crashed (SIGSEGV)" in report.failed[0].error


def test_documents_are_parsed_while_others_are_embedded(
    collection: Collection, tmp_path: Path, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.parsing.sandbox.worker_pool._shared", pool)
    monkeypatch.setattr("ragfm.ingestion.sync.MAX_COMMIT_DOCUMENTS", 1)
    folder = tmp_path / "slow"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.html").write_bytes(_code("output = time.time(); time.sleep(0.1)").data)
    embedded: list[tuple[float, float]] = []
    passages = HashingEmbedder.embed_passages

    def slowly(self: HashingEmbedder, texts: Sequence[str]) -> Vectors:
        began = time.time()
        time.sleep(0.3)
        embedded.append((began, time.time()))
        return passages(self, texts)

    monkeypatch.setattr(HashingEmbedder, "embed_passages", slowly)
    assert collection.sync(folder).added == 5
    parsed = [float(collection.document(f"slow/{number}.html").text) for number in range(5)]
    assert any(began < at < ended for at in parsed for began, ended in embedded)


def test_surrogates_are_replaced() -> None:
    document = Document("a", "x\ud800y", "text/plain")
    frame = next(worker_protocol.FrameReader().feed(worker_protocol.pack_document(document)))
    assert worker_protocol.unpack_document(frame, Blob(b""), "a").text == "x?y"
