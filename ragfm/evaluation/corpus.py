"""Build a collection from the documents of a data set, as a user would: write files, then sync."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from ragfm.collection import Collection
from ragfm.core.config import Settings
from ragfm.core.progress import ProgressCallback
from ragfm.evaluation.question_sets import CORPUS, QuestionSet
from ragfm.ingestion.ingest_report import SyncReport


@contextlib.contextmanager
def corpus_collection(
    data: QuestionSet, settings: Settings, *, keep: str | Path | None = None, progress: ProgressCallback | None = None
) -> Iterator[tuple[Path, SyncReport]]:
    """Build a collection of the set's documents; yields its folder and the report of the ingest.

    It is temporary unless `keep` names a folder to store it in. That folder can hold several sets, and a set that it
    has already is not embedded again. Raises ValueError for a set without documents.
    """
    if data.documents is None:
        raise ValueError(f"{data.name} contains no documents")
    with contextlib.ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ragfm-eval-")))
        else:
            digest = blake2b(digest_size=6)
            for path, text in data.documents.items():
                digest.update(f"{path}\0{len(text)}\0{text}".encode("utf-8", "replace"))
            folder = Path(keep) / f"{data.name.replace(' ', '-')}-{digest.hexdigest()}"
        corpus = folder / CORPUS
        if not corpus.exists():
            unfinished = corpus.with_name(f"{CORPUS}.part")
            for path, text in data.documents.items():
                file = unfinished / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(text.encode("utf-8", "replace"))
            unfinished.rename(corpus)  # last, so that a folder of this name is complete
        with Collection.open(folder / ".ragfm", settings=settings) as collection:
            report = collection.sync(corpus, name=CORPUS, progress=progress)
        yield folder / ".ragfm", report
