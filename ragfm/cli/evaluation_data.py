"""Questions, and the collection that they are asked of, for the commands that evaluate, tune and train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import INTERRUPTED, OK, SOME_FAILED, usage_error
from ragfm.cli.output import print_note
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection

if TYPE_CHECKING:
    from ragfm.core.progress import ProgressCallback
    from ragfm.evaluation import QuestionSet
    from ragfm.ingestion.ingest_report import SyncReport


def load_data(
    path: str, options: Mapping[str, Any], *, answers: bool = False, by_document: bool = False
) -> QuestionSet:
    """Load the questions of a file or folder, as the data options and --limit select.

    With `by_document`, --limit keeps questions about the same documents together. Raises a usage error for options that
    the data has no use for.
    """
    from ragfm.evaluation import load_questions

    data = load_questions(path, split=options.get("split"), answers=answers)
    if data.documents is None:
        check_no_documents(options)
    elif click.get_current_context().get_parameter_source("collection") is click.core.ParameterSource.COMMANDLINE:
        usage_error("This data contains its documents: use --keep instead of -c.")
    limit = options["limit"]
    return data.sample(limit, by_document=by_document) if limit else data


def check_no_documents(options: Mapping[str, Any]) -> None:
    """Raise a usage error for options about the documents of the data, for questions about the collection."""
    for name in ("embedder", "keep"):
        if options[name]:
            usage_error(f"--{name} requires data that contains its documents.")


@contextmanager
def data_collection(
    data: QuestionSet | None,
    path: str,
    options: Mapping[str, Any],
    *,
    ask: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Collection, SyncReport | None]]:
    """Open the collection at `path`, or one made of the data's documents with the settings that apply there.

    Yields the collection and the report of the ingest, if there was one. `ask` has settings to override.
    """
    from ragfm.core.config import load_settings
    from ragfm.evaluation import corpus_collection

    settings = load_settings(Collection.open(path).settings_file, embedder=options["embedder"])
    settings = settings.model_copy(update={"ask": settings.ask.model_copy(update=ask)})
    folder: str | Path = path
    synced = None
    with ExitStack() as stack:
        if data is not None and data.documents is not None:
            with show_progress("documents") as progress:
                made = corpus_collection(data, settings, keep=options["keep"], progress=progress)
                folder, synced = stack.enter_context(made)
        yield stack.enter_context(Collection.open(folder, settings=settings)), synced


def data_facts(data: QuestionSet, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about the questions that a run file records."""
    sample = {"limit": options["limit"], "seed": 0} if options["limit"] else {}
    return {"data": data.name, "left_out": dict(data.left_out), **sample}


@contextmanager
def resumable(out: str | None) -> Iterator[ProgressCallback]:
    """Show the progress of a run; after Ctrl-C, print how to continue it."""
    try:
        with show_progress("questions") as progress:
            yield progress
    except KeyboardInterrupt:
        print_how_to_continue(out)
        raise


def exit_code(synced: SyncReport | None, stopped: bool, out: str | None) -> int:
    """Return the exit code of a run; one that Ctrl-C stopped prints how to continue it."""
    if stopped:
        print_how_to_continue(out)
        return INTERRUPTED
    return SOME_FAILED if synced and synced.failed else OK


def print_how_to_continue(out: str | None) -> None:
    """Print, to standard error, where the results so far are kept."""
    if out:
        print_note(f"Results so far are kept in {out}. Run the same command again to continue.")
    else:
        print_note("Results so far are lost. Use --out FILE to keep them.")
