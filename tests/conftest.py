"""Fixtures: a folder of documents, a light collection over it, and where the public data sets are."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.judges import HAS_JUDGE, use_judge
from support.postgres_server import PostgresServer, postgres_server, programs
from support.processes import RUN_VARIABLE, wait_for_end
from support.small_documents import write_documents

from ragfm import Collection, Settings
from ragfm.embedders import sentence_transformer
from ragfm.parsing.sandbox.worker_pool import shared_worker_pool
from ragfm.testing import HashingEmbedder

# Hundreds of tests start processes, each of which would compile ragfm again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Background jobs of a script ignore Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Scores, to the last bit, must not depend on how many questions other tests have asked.
sentence_transformer.MIN_QUERIES_TO_LOAD = sys.maxsize

DATA = Path(os.environ.get("RAGFM_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `both_databases` run in a folder and on PostgreSQL, except those marked `in_a_folder`."""
    marks = metafunc.definition.get_closest_marker
    if marks("both_databases") and not marks("in_a_folder") and "collection" in metafunc.fixturenames:
        metafunc.parametrize("collection", ["folder", "postgresql"], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests use a scripted judge, unless they are marked `judge`; before the fixtures of their module, too."""
    use_judge(scripted=item.get_closest_marker("judge") is None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `data` or `judge` are skipped where the data sets or the model are absent."""
    if not HAS_JUDGE:
        for item in items:
            if item.get_closest_marker("judge"):
                item.add_marker(pytest.mark.skip(reason="the judge's weights are not there"))
    if not DATA.is_dir():
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=f"no data sets at {DATA}; set RAGFM_DATA"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the files of a run without a failure: they may be in memory, see tests/support/__init__.py."""
    chosen = session.config.option.basetemp  # by the caller, or by the process that started this one
    if exitstatus == 0 and chosen is None:
        shutil.rmtree(session.config._tmp_path_factory.getbasetemp(), ignore_errors=True)  # type: ignore[attr-defined]


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_tests() -> Iterator[None]:
    """A process that is left fails the last test of the run, by an error that names the process and its test."""
    run = os.environ[RUN_VARIABLE] = uuid.uuid4().hex
    yield
    shared_worker_pool().close()
    if left := wait_for_end(run, seconds=60):
        pytest.fail("Processes outlived the tests that started them:\n" + "\n".join(left))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("RAGFM_DATA", "RAGFM_VISION_MODEL")
    for name in [name for name in os.environ if name.startswith("RAGFM_") and name not in kept]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For torch: on tiny matrices threads only wait for each other, and very long where the machine is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def broken_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed OpenVINO whose import fails."""
    (tmp_path / "openvino.py").write_text('raise OSError("libopenvino.so: cannot open shared object file")\n')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino" or "bert_openvino" in name]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Four small documents, of which no parser process needs to be started."""
    return write_documents(tmp_path)


@pytest.fixture(scope="session")
def shared_handbook(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """A collection of the four documents in a folder, for tests that only read."""
    place = tmp_path_factory.mktemp("handbook")
    collection = Collection.open(place / ".ragfm", settings=Settings(), embedder=HashingEmbedder())
    collection.sync(write_documents(place))
    return collection


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, which all tests of the session share."""
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_server() as server:
        yield server


@pytest.fixture
def address(postgres: PostgresServer, tmp_path: Path) -> Iterator[str]:
    """The address of a collection on PostgreSQL that does not exist yet. The working directory is `tmp_path`."""
    with pytest.MonkeyPatch.context() as monkeypatch:  # tests may undo what their own one has set
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield postgres.address(f"c{uuid.uuid4().hex[:12]}")


@pytest.fixture
def _pgvector(postgres: PostgresServer) -> None:
    """Skips a test if the server lacks pgvector, as Debian's does: root's own embedded one may be out of its reach."""
    if not postgres.sql("SELECT name FROM pg_available_extensions WHERE name = 'vector'").strip():
        pytest.skip("this PostgreSQL has no pgvector")


@pytest.fixture
def collection(request: pytest.FixtureRequest, tmp_path: Path, embedder: HashingEmbedder) -> Iterator[Collection]:
    """A collection that does not exist yet, in a folder or, for tests of both databases, on PostgreSQL."""
    on_server = getattr(request, "param", os.environ.get("X_DATABASE", "folder")) == "postgresql"
    place = request.getfixturevalue("address") if on_server else tmp_path / ".ragfm"
    with Collection.open(place, settings=Settings(), embedder=embedder) as collection:
        yield collection
