"""Services in confined processes: files by descriptor, limits, restarts, threads and forks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits


@pytest.fixture
def service() -> Iterator[ConfinedService]:
    service = ConfinedService("support.confined_echo", limits=Limits(memory=64 << 20, model_memory=64 << 20))
    yield service
    service.close()


def process_of(service: ConfinedService) -> int:
    assert service._process is not None
    return service._process.pid


def test_a_service_gets_open_files_and_opens_none_itself(service: ConfinedService, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"hidden")
    with secret.open("rb") as file:
        for _ in range(3):
            file.seek(0)
            pid, data = service.call("read", None, file=file.fileno())
            assert data == b"hidden"
    assert pid != os.getpid()
    assert service._process is not None
    if "landlock" not in service._process.protections:
        pytest.skip("the system has no Landlock")
    with pytest.raises(ParseError, match="PermissionError"):
        service.call("open", str(secret))
    with pytest.raises(ParseError, match="PermissionError"):
        service.call("connect", 80)
    allowed = ConfinedService("support.confined_echo", readable=[str(tmp_path)])
    assert allowed.call("open", str(secret))[0] == 6
    allowed.close()


def test_errors_and_values_pass_through(service: ConfinedService) -> None:
    assert service.call("echo", {"a": [1, "é", None]}) == ({"a": [1, "é", None]}, b"")
    with pytest.raises(SkipDocument, match="nothing here"):
        service.call("skip", "nothing here")
    with pytest.raises(ParseError, match="TypeError"):
        service.call("bytes", "many")
    assert service.call("bytes", 1000, max_bytes=1000)[1] == b"x" * 1000
    pid = process_of(service)
    with pytest.raises(ParseError, match="too long"):
        service.call("bytes", 1001, max_bytes=1000)
    assert service.call("echo", 1)[0] == 1
    assert process_of(service) != pid


@pytest.mark.parametrize(
    ("action", "argument", "reason"),
    [("bytes", 500 << 20, "memory"), ("exit", 3, "status 3"), ("sleep", 30, "made no progress for 0.3 s")],
)
def test_a_process_that_ends_costs_one_call(action: str, argument: int, reason: str) -> None:
    limits = Limits(stall_seconds=0.3, memory=64 << 20, model_memory=64 << 20)
    service = ConfinedService("support.confined_echo", limits=limits)
    assert service.call("echo", 1)[0] == 1
    with pytest.raises(ParseError, match=reason):
        service.call(action, argument, max_bytes=1 << 30)
    assert service.call("echo", 2)[0] == 2
    service.close()


def test_a_process_that_was_killed_is_replaced_unnoticed(service: ConfinedService) -> None:
    service.call("echo", 1)
    pid = process_of(service)
    os.kill(pid, signal.SIGKILL)
    assert service.call("echo", 2)[0] == 2
    assert process_of(service) != pid


def test_a_process_outlives_the_thread_that_called_first_and_serves_many(service: ConfinedService) -> None:
    first = threading.Thread(target=service.call, args=("echo", 1))
    first.start()
    first.join()
    pid = process_of(service)
    results = list[int]()
    threads = [
        threading.Thread(target=lambda n=n: results.append(service.call("echo", n)[0]))  # type: ignore[misc]
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(20))
    assert process_of(service) == pid


def test_a_fork_gets_a_process_of_its_own(service: ConfinedService) -> None:
    service.call("echo", 1)
    pid, reading, writing = process_of(service), *os.pipe()
    child = os.fork()
    if child == 0:
        own = service.call("echo", 2)[0] == 2 and process_of(service) != pid
        service.close()
        os.write(writing, b"own" if own else b"shared")
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reading, 10) == b"own"
    assert service.call("echo", 3)[0] == 3
    assert process_of(service) == pid


def test_a_service_ends_with_its_object(service: ConfinedService) -> None:
    other = ConfinedService("support.confined_echo")
    other.call("echo", 1)
    process, folder = process_of(other), Path(other._process.folder)  # type: ignore[union-attr]
    assert folder.exists()
    del other
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
