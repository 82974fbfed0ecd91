"""`ragfm compare`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.evaluation_data import data_collection, data_facts, load_data, print_how_to_continue, resumable
from ragfm.cli.options import (
    INTERRUPTED,
    OK,
    SOME_FAILED,
    collection_options,
    out_folder_option,
    question_options,
    text_option,
)
from ragfm.cli.output import (
    print_failures,
    print_json,
    print_note,
    print_statuses,
    print_table,
    print_text,
    print_written,
)
from ragfm.collection import Collection

if TYPE_CHECKING:
    from ragfm.evaluation import QuestionSet
    from ragfm.ingestion.ingest_report import SyncReport

QUALITY = (
    "f1, all",
    "f1, answerable",
    "contained, answerable",
    "contained as shown, answerable",
    "abstention recall",
    "citation precision",
)


@click.command()
@click.argument("data", type=click.Path(exists=True))
@text_option(
    "--reader",
    "readers",
    multiple=True,
    metavar="NAME",
    help="Model that answers; may be repeated. Default: the reader of the collection.",
)
@text_option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR|none",
    help="LoRA adapter, or `none`; may be repeated. Default: the adapter of ragfm.toml for its reader.",
)
@click.option(
    "-k", "ks", multiple=True, type=click.IntRange(min=1), metavar="N", help="Number of passages; may be repeated."
)
@text_option("--strategy", "strategies", multiple=True, metavar="NAME|FILE", help="Prompt template; may be repeated.")
@question_options
@out_folder_option("ragfm-compare", "Folder of the runs; running the command again resumes them.")
@collection_options
def compare(collection: str, as_json: bool, data: str, out: str, **options: Any) -> int:
    """Compare readers, adapters, prompt templates and passage counts on the questions of DATA.

    All combinations are evaluated, each in its own process. DATA has the same format as for `ragfm eval answers`.
    """
    from ragfm.core.config import load_settings
    from ragfm.evaluation import compare_readers, contender_grid

    settings = load_settings(Collection.open(collection).settings_file, embedder=options["embedder"])
    questions = load_data(data, options, answers=True)
    options["keep"] = options["keep"] or str(Path(out) / "collection")
    candidates = contender_grid(
        options["readers"] or [settings.reader], options["adapters"], options["ks"], options["strategies"]
    )
    if not options["adapters"]:
        candidates = [
            replace(candidate, adapter=settings.adapter) if candidate.reader == settings.reader else candidate
            for candidate in candidates
        ]

    folder, synced = collection, None
    if questions.documents is not None:
        # The collection is filled before anything is measured, so that it does not count for the first reader, and in
        # a process of its own, because the peak memory of this process would count for those that it starts.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            folder, synced = pool.submit(_ingest, questions, collection, options).result()
    with resumable(out) as progress:
        entries = compare_readers(
            candidates,
            questions.questions,
            folder,
            Path(out),
            settings=settings,
            about=data_facts(questions, options),
            progress=progress,
            partial=True,
        )
    count = len(dict.fromkeys(candidates))
    stopped = len(entries) < count
    if as_json:
        listed = [{**asdict(entry), "name": entry.contender.name} for entry in entries]
        ingest = asdict(synced) if synced else None
        print_json({"entries": listed, "out": out, "stopped": stopped, "ingest": ingest})
    else:
        rows = []
        for entry in entries:
            if entry.error:
                print_note(f"{entry.contender.name}: {entry.error}")
                continue
            estimates = [entry.quality.get(name) for name in QUALITY]
            rows.append(
                (
                    entry.contender.name,
                    *(f"{it.value:.3f} [{it.low:.3f}, {it.high:.3f}]" if it else "-" for it in estimates),
                    f"{entry.latency_ms['p50'].value:.0f} / {entry.latency_ms['p95'].value:.0f}",
                    f"{entry.prompt_tokens:.0f} + {entry.completion_tokens:.0f}",
                    f"{entry.peak_mb}",
                    entry.licence or "unknown",
                    entry.data_goes,
                )
            )
        numbers = [f">{name}" for name in ("F1, all", *QUALITY[1:], "p50 / p95 ms", "tokens", "MB")]
        print_table(["reader", *numbers, "licence", "data goes"], rows)
        print_statuses({entry.contender.name: entry.statuses for entry in entries if entry.statuses})
        for entry in entries:
            if difference := entry.beside_best:
                verdict = "within noise" if difference.noise else f"p = {difference.p:.4f}"
                print_text(
                    f"{entry.contender.name} compared with {entries[0].contender.name}: {difference.difference:+.3f} "
                    f"[{difference.low:+.3f}, {difference.high:+.3f}], {verdict}"
                )
        print_failures([], synced)
        print_written(out)
    if stopped:
        print_note(f"Stopped: {len(entries)} of {count} were compared.")
        print_how_to_continue(out)
        return INTERRUPTED
    return SOME_FAILED if any(entry.error for entry in entries) or (synced and synced.failed) else OK


def _ingest(questions: QuestionSet, collection: str, options: Mapping[str, Any]) -> tuple[str, SyncReport]:
    with data_collection(questions, collection, options) as (handle, synced):
        assert synced is not None
        return str(handle.location), synced
