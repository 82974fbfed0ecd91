"""The process that indexes uploads."""

from __future__ import annotations

from ragfm.server.index_worker import _unsettled
from ragfm.store.uploads import UPLOADS_SOURCE, Upload


def test_before_the_last_slice_a_file_that_failed_is_settled_but_not_an_archive_of_which_a_file_failed() -> None:
    """What is settled does not count as waiting, so a key can go on after uploads that cannot be indexed."""
    names = ("broken.pdf", "notes.zip", "waits.zip", "indexed.txt")
    ids = [f"{number:016x}" for number in range(len(names))]
    uris = [f"{UPLOADS_SOURCE}/{number}/{name}" for number, name in zip(ids, names, strict=True)]
    stored = [Upload(uri, "key:a", 10) for uri in uris]
    assert _unsettled([ids[2]], stored, [uris[0], f"{uris[1]}/a.pdf"]) == {ids[1], ids[2]}
