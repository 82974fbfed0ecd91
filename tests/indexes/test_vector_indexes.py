from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from ragfm_indexes import faiss_base, faiss_hnsw, vector_arrays
from ragfm_indexes.faiss_base import FaissSelection
from ragfm_indexes.faiss_flat import FaissFlatIndex
from ragfm_indexes.faiss_hnsw import FaissHnswIndex
from ragfm_indexes.vector_arrays import SelectionCache

from ragfm.core.registry import load_plugin, plugins
from ragfm.testing import check_vector_index

ALL = pytest.mark.parametrize("index_class", [FaissFlatIndex, FaissHnswIndex])


def unit(n: int, dim: int = 16, seed: int = 0) -> Any:
    vectors = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- The contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins("indexes"))
def test_every_index_keeps_the_contract(name: str) -> None:
    check_vector_index(load_plugin("indexes", name))


class Negated(FaissFlatIndex):
    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        return np.where(ids < 0, scores, -scores)[:, ::-1].copy(), ids[:, ::-1].copy()


class Unfiltered(FaissFlatIndex):
    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        return super().search(queries, k)


class FilteredAfterwards(FaissFlatIndex):
    """Searches the best `k` first, then drops those that are not allowed."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k)
        dropped = np.zeros(ids.shape, dtype=bool) if allowed is None else ~np.isin(ids, allowed)
        scores[dropped], ids[dropped] = -np.inf, -1
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


class Distances(FaissFlatIndex):
    """Returns squared L2 distances instead of cosines, like vicinity 0.4.4; the order of the ids is right."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        return np.where(ids < 0, scores, 2 - 2 * scores).astype(np.float32), ids


class NegatedDistances(FaissFlatIndex):
    """Returns negated distances: the ids are in the right order and the scores are descending."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        return np.where(ids < 0, scores, 2 * scores - 2).astype(np.float32), ids


class Positions(FaissFlatIndex):
    """Returns row numbers instead of ids."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        return scores, np.where(ids < 0, -1, np.searchsorted(self._ids, ids))


class ZerosForNothing(FaissFlatIndex):
    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        return np.where(ids < 0, 0, scores).astype(np.float32), ids


class Aliased(FaissFlatIndex):
    """Keeps the given arrays without copying them."""

    @classmethod
    def build(cls, ids: Any, vectors: Any) -> Any:
        super().build(ids, vectors)
        index = cls(ids, vectors)
        index.search = lambda *a, **k: FaissFlatIndex.build(ids, vectors).search(*a, **k)  # type: ignore[method-assign]
        return index


class Trusting(FaissFlatIndex):
    """Accepts any input."""

    @classmethod
    def build(cls, ids: Any, vectors: Any) -> Any:
        order = np.argsort(ids)
        index = faiss.IndexFlatIP(np.shape(vectors)[1])
        index.add(np.ascontiguousarray(np.asarray(vectors, np.float32)[order]))
        return cls(np.asarray(ids, np.int64)[order], index)


class Forgetful(FaissFlatIndex):
    """Loses the last vector when saved."""

    def save(self, folder: Path) -> None:
        FaissFlatIndex.build(self._ids[:-1], self._index.reconstruct_n(0, len(self) - 1)).save(folder)


class OneBuffer(FaissFlatIndex):
    """Not thread-safe: all searches write to the same array."""

    buffer = np.empty((100, 2000), dtype=np.int64)

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        self.buffer[: len(ids), :k] = ids
        time.sleep(0.002)
        return scores, self.buffer[: len(ids), :k].copy()


class HalfBlind(FaissFlatIndex):
    """Finds only vectors in even rows."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        seen = self._ids[::2] if allowed is None else np.intersect1d(self._ids[::2], allowed)
        return super().search(queries, k, allowed=seen)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Negated, "but the cosines are"),
        (Unfiltered, "not allowed"),
        (FilteredAfterwards, "0 hits, expected 1"),
        (Distances, "but the cosines are"),
        (NegatedDistances, "but the cosines are"),
        (Positions, "not in the index"),
        (ZerosForNothing, "-inf"),
        (Aliased, "but the cosines are|length 1|distinct"),
        (Trusting, "must raise ValueError"),
        (Forgetful, "len is"),
        (OneBuffer, "queries, k=10"),
        (HalfBlind, "recall"),
    ],
)
def test_the_contract_catches_a_broken_index(broken: type[FaissFlatIndex], message: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=message):
        check_vector_index(broken)


class Negligent(FaissFlatIndex):
    """Misses a tenth of the vectors, and its scores are slightly wrong."""

    recall = 0.6
    overlooked = 10

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        wanted = self._ids if allowed is None else np.intersect1d(self._ids, allowed)
        seen = wanted[np.arange(len(wanted)) % self.overlooked > 0]
        scores, ids = super().search(queries, k, allowed=seen if len(seen) >= k else wanted)
        return scores - np.float32(0.001), ids


class Overconfident(Negligent):
    recall = 0.95


class ShortSighted(Negligent):
    """Like a graph search that stops early: with a selective filter it returns too few hits."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        if allowed is not None and len(allowed) == 2000:
            scores[0, k // 2 :], ids[0, k // 2 :] = -np.inf, -1
        return scores, ids


def test_the_contract_accepts_an_approximate_index_within_its_recall() -> None:
    check_vector_index(Negligent)
    with pytest.raises(AssertionError, match=r"recall is 0\.\d+, below 0.95"):
        check_vector_index(Overconfident)
    with pytest.raises(AssertionError, match="2000 ids allowed: 20 hits, expected 40"):
        check_vector_index(ShortSighted)


# --- Beyond the contract -----------------------------------------------------------------------------------------


def test_scores_of_a_few_allowed_vectors_do_not_depend_on_the_batch_or_the_filter() -> None:
    """BLAS would give equal vectors unequal scores, depending on their position and on the batch size."""
    vectors = unit(1003, 384)
    vectors[::7] = vectors[3]
    ids = np.random.default_rng(1).permutation(1003) + 10
    twins = np.sort([*ids[::7], ids[3]])
    index = FaissFlatIndex.build(ids, vectors)
    queries = np.concatenate([vectors[3:4], unit(32, 384, seed=2)])
    scores, found = index.search(queries, 900, allowed=ids[:900])
    assert found[0].tolist()[:50] == np.intersect1d(twins, ids[:900])[:50].tolist()  # equal ones in order of id
    assert len(set(scores[0, :50].tolist())) == 1
    for batch in (1, 2):
        fewer, same = index.search(queries[:batch], 900, allowed=ids[:900])
        assert np.array_equal(fewer, scores[:batch])
        assert np.array_equal(same, found[:batch])
    within = index.search(queries[1:2], 20, allowed=found[1, :20])
    assert np.array_equal(within[0][0], scores[1, :20])


def test_filters_of_any_size_return_the_exact_hits() -> None:
    """FAISS filters with a bitmap above a thousand ids, numpy below; the bits must match the rows."""
    ids = np.random.default_rng(3).permutation(50_000)[:5001] + 2**50
    vectors, queries = unit(5001), unit(25, seed=1)
    index = FaissFlatIndex.build(ids, vectors)
    for count in (0, 1, 7, 999, 1000, 1001, 1002, 2501, 4999, 5000, 5001):
        allowed = np.random.default_rng(count).permutation(ids)[:count]
        open_ = np.isin(ids, allowed)
        exact = np.where(open_, queries @ vectors.T, -np.inf)
        expected = np.argsort(-exact, axis=1)[:, : min(10, count)]
        scores, found = index.search(queries, 10, allowed=allowed)
        assert np.array_equal(found[:, : min(10, count)], ids[expected])
        assert (found[:, count:] == -1).all()
        assert np.isneginf(scores[:, count:]).all()


@ALL
def test_plain_lists_are_accepted(index_class: Any) -> None:
    index = index_class.build([5, 3], [[0, 1], [1, 0]])
    assert index.search([[1, 0]], 2)[1].tolist() == [[3, 5]]
    assert index.search([[1, 0]], 2, allowed=[])[1].tolist() == [[-1, -1]]
    assert index.search([[1, 0]], 1, allowed=[5, -1])[1].tolist() == [[5]]


@ALL
@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ([1, 2, 1], np.eye(3), "distinct ids, got 1 twice"),
        ([1, -2, 3], np.eye(3), "ids >= 0, got -2"),
        ([1.0, 2.0, 3.0], np.eye(3), "ids as int64, got float64"),
        (np.array([1, 2, 2**63], np.uint64), np.eye(3), "ids as int64, got uint64"),
        ([1, 2], np.eye(3), r"got shapes \(2,\) and \(3, 3\)"),
        ([[1, 2, 3]], np.eye(3), "shapes"),
        ([7, 8, 9], np.diag([1, 1.002, 1]), "length 1, that of id 8 has 1.002"),
        ([7, 8, 9], np.diag([1, 0, 1]), "that of id 8 has 0"),
        ([7, 8, 9], np.diag([1, 1, np.nan]), "that of id 9 has nan"),
        ([7, 8, 9], np.diag([1, 1, 1e300]), "that of id 9 has inf"),
        ([7, 8, 9], np.eye(3) * 1j, "real numbers, got complex128"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_build_names_invalid_input(index_class: Any, ids: Any, vectors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index_class.build(ids, vectors)


@ALL
def test_search_names_invalid_input(index_class: Any) -> None:
    index = index_class.build([1, 2, 3], np.eye(3))
    assert index_class.build([1], [[1.0009, 0]]).search([[1, 0]], 1)[1].tolist() == [[1]]  # within the tolerance
    for queries, k, message in [
        (np.eye(3), 0, "k >= 1, got 0"),
        (np.eye(4), 1, r"queries \(n, 3\), got shape \(4, 4\)"),
        (np.full((1, 3), np.nan), 1, "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(queries, k)
    with pytest.raises(ValueError, match="allowed ids as int64, got float64"):
        index.search(np.eye(3), 1, allowed=np.array([1.5]))


# --- Files -------------------------------------------------------------------------------------------------------


@ALL
def test_files_are_mapped_and_named_as_documented(index_class: Any, tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"  # a byte that is not UTF-8
    folder.mkdir()
    index_class.build(np.arange(4000), unit(4000, 64)).save(folder)
    data = "index.faiss"
    assert sorted(path.name for path in folder.iterdir()) == sorted(["ids.npy", data])
    index = index_class.load(folder)
    mapped = Path("/proc/self/maps").read_text(errors="surrogateescape")
    assert f"{folder}/{data}" in mapped.replace("\\351", "\udce9")
    shutil.rmtree(folder)
    assert index.search(unit(4000, 64)[[123]], 1)[1].tolist() == [[123]]


@ALL
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "another", "type", "unsorted", "fewer"])
def test_damaged_or_inconsistent_files_are_refused(index_class: Any, tmp_path: Path, damage: str) -> None:
    index_class.build(np.arange(100), unit(100)).save(tmp_path)
    data = tmp_path / "index.faiss"
    ids = tmp_path / "ids.npy"
    if damage == "empty":
        data.write_bytes(b"")
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-100])
    elif damage == "garbage":
        data.write_bytes(b"not an index at all" * 100)
    elif damage == "another":
        write_l2(data)
    else:
        wrong = {"type": np.arange(100, dtype=np.int32), "unsorted": np.arange(100)[::-1], "fewer": np.arange(99)}
        np.save(ids, wrong[damage])
    with pytest.raises(ValueError, match=r"."):
        index_class.load(tmp_path)
    data.unlink()
    np.save(ids, np.arange(100))
    with pytest.raises(FileNotFoundError):
        index_class.load(tmp_path)


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-hnsw"])
def test_no_damage_to_a_file_crashes_the_process(kind: str, tmp_path: Path) -> None:
    """In production checksums detect damage earlier. Flips are dense in the header, which has the lengths."""
    code = f"from {Path(__file__).stem} import damage_and_load; damage_and_load({kind!r}, {str(tmp_path)!r})"
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    loaded, refused = map(int, result.stdout.split())
    assert loaded > 50
    assert refused > 150


def damage_and_load(kind: str, place: str) -> None:
    """600 times: flip a bit anywhere or near the start, cut off the end, or zero a page; then load and search."""
    folder, random = Path(place), np.random.default_rng(0)
    index_class, loaded, refused = load_plugin("indexes", kind), 0, 0
    faiss_hnsw.GRAPH_STEP_COST = 0  # always search the graph, even with few vectors
    for count in (1, 60, 300):
        vectors = unit(count)
        index_class.build(np.arange(count), vectors).save(folder)
        whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}
        for turn in range(200):
            path = list(whole)[turn % 5 > 0]
            data = bytearray(whole[path])
            at = int(random.integers(len(data) if turn % 4 else min(len(data), 400)))
            if turn % 4 == 3:
                at = at // 4096 * 4096
                data[at : at + 4096] = bytes(len(data[at : at + 4096]))
            elif turn % 4 == 2:
                del data[at:]
            else:
                data[at] ^= 1 << int(random.integers(8))
            path.write_bytes(data)
            try:
                index = index_class.load(folder)
            except ValueError:
                refused += 1
            else:
                loaded += 1
                index.search(vectors[:3], 10)
                index.search(vectors[:1], 10, allowed=np.arange(0, count, 2))
            path.write_bytes(whole[path])
    sys.stdout.write(f"{loaded} {refused}")


@ALL
def test_faiss_reads_within_limits_and_restores_them(
    index_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_class.build(np.arange(500), unit(500)).save(tmp_path)
    names = ("vector_byte_limit", "loop_limit", "lattice_r2_limit")

    def limits() -> list[int]:
        return [getattr(faiss, f"get_deserialization_{name}")() for name in names]

    before, read, seen = limits(), faiss.read_index, []

    def recording(*args: Any) -> Any:
        seen.append(limits())
        return read(*args)

    monkeypatch.setattr(faiss, "read_index", recording)
    index_class.load(tmp_path)
    size = (tmp_path / "index.faiss").stat().st_size
    assert seen == [[size + 1, size // 8 + 1, 1]]
    assert limits() == before
    (tmp_path / "index.faiss").write_bytes((tmp_path / "index.faiss").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"index\.faiss"):
        index_class.load(tmp_path)
    assert limits() == before


def write_l2(path: Path) -> None:
    index = faiss.IndexFlatL2(16)
    index.add(unit(100))
    faiss.write_index(index, str(path))


@ALL
def test_a_full_disk_is_an_os_error(index_class: Any, tmp_path: Path) -> None:
    (tmp_path / "index.faiss").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        index_class.build(np.arange(100), unit(100)).save(tmp_path)


@ALL
def test_many_threads_search_one_loaded_index(index_class: Any, tmp_path: Path) -> None:
    vectors = unit(3000)
    index_class.build(np.arange(3000), vectors).save(tmp_path)
    index = index_class.load(tmp_path)
    halves = [np.arange(0, 3000, 2), np.arange(1, 3000, 2)]

    def ask(row: int) -> int:
        return int(index.search(vectors[[row]], 1, allowed=halves[row % 2])[1][0, 0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(500))) == list(range(500))


# --- Filters -----------------------------------------------------------------------------------------------------


def read_only(ids: Any) -> Any:
    array = np.array(ids)
    array.flags.writeable = False
    return array


@ALL
def test_a_read_only_array_is_converted_once(index_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(2000)
    looked_up = []
    for module in (sys.modules[index_class.__module__], faiss_base):
        if hasattr(module, "rows_of_ids"):
            lookup = lambda ids, allowed: looked_up.append(len(allowed)) or vector_arrays.rows_of_ids(ids, allowed)  # noqa: E731
            monkeypatch.setattr(module, "rows_of_ids", lookup)
    index = index_class.build(np.arange(2000), vectors)
    even, odd = read_only(np.arange(0, 2000, 2)), np.flatnonzero(np.arange(2000) % 2)
    odd.flags.writeable = False  # a view, as most of numpy's results are
    for allowed, row in [(even, 6), (odd, 7), (even, 8), (odd, 9)]:
        assert index.search(vectors[[row]], 1, allowed=allowed)[1].tolist() == [[row]]
    assert looked_up == [1000, 1000]
    own = np.arange(0, 2000, 2)
    assert index.search(vectors[[7]], 1, allowed=own)[1] != 7
    own[:] = odd
    assert index.search(vectors[[7]], 1, allowed=own)[1] == 7


def test_selections_are_evicted_with_their_array_and_by_last_use() -> None:
    made: list[int] = []

    def make(allowed: Any) -> FaissSelection:
        made.append(int(allowed[0]))
        return FaissSelection(allowed, 100)

    selections = SelectionCache(make, size=2)
    first, second, third = (read_only([n]) for n in (1, 2, 3))
    for allowed in (first, second, first, third, first, second):
        assert selections.get(allowed).rows is allowed
    assert made == [1, 2, 3, 2]  # third drove second out, as first had been asked for after it
    single = SelectionCache(lambda allowed: FaissSelection(np.array(allowed), 100))
    for n in range(50):
        gone = read_only([n])
        assert single.get(gone).rows[0] == n  # an array at the address of a dead one is another array
        del gone
    gc.collect()
    assert not single._cache


def test_the_selection_cache_is_thread_safe() -> None:
    selections = SelectionCache(lambda allowed: FaissSelection(np.array(allowed), 100), size=3)
    arrays = [read_only([n]) for n in range(10)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: selections.get(arrays[n % 10]).rows[0], range(2000)))
    assert found == [n % 10 for n in range(2000)]


# --- Approximate search ------------------------------------------------------------------------------------------


@ALL
def test_searches_restore_the_number_of_faiss_threads(
    index_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        index = index_class.build(np.arange(2000), unit(2000))
        seen = []
        search = index._search

        def recording(*args: Any) -> Any:
            seen.append(faiss.omp_get_max_threads())
            return search(*args)

        monkeypatch.setattr(index, "_search", recording)
        index.search(unit(1), 5)
        index.search(unit(2), 5)
        monkeypatch.setattr(index, "_search", lambda *args: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            index.search(unit(1), 5)
        assert seen == [1, 3]
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_a_filter_far_from_the_query_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph visits vectors near the query only, of which none or a few are allowed."""
    vectors = unit(4000, 32)
    query = vectors[:1]
    order = np.argsort(-(vectors @ query[0]))
    index = FaissHnswIndex.build(np.arange(4000), vectors)
    monkeypatch.setattr(faiss_hnsw, "GRAPH_STEP_COST", 0)
    for allowed in (order[-50:], order[-400:], np.concatenate([order[3:20:8], order[-400:]])):
        best = allowed[np.argsort(-(vectors[allowed] @ query[0]))][:10]
        assert set(index.search(query, 40, allowed=np.sort(allowed))[1][0]) >= set(best)


@ALL
def test_building_and_searching_print_nothing(index_class: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for count in (0, 1, 30, 100, 3000):
        index_class.build(np.arange(count), unit(count)).search(unit(1), 5)
    assert capfd.readouterr() == ("", "")
