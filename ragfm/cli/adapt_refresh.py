"""`ragfm adapt refresh` and `ragfm adapt back`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import POSITIVE, collection_options, seed_option, text_option
from ragfm.cli.output import print_json, print_note, print_result, print_sync_report, print_text
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection

if TYPE_CHECKING:
    from ragfm.ingestion.ingest_report import SyncReport
    from ragfm.training.refresh import RefreshReport

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("questions", required=False, type=_FILE)
@click.option("--old", type=_FILE, help="Questions with answers about the collection, on which quality must not drop.")
@click.option(
    "--replay",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of earlier training examples to replay, one per new example.",
)
@click.option("--no-sync", is_flag=True, help="Do not sync the collection first.")
@click.option("--epochs", default=2.0, type=POSITIVE, help="Number of passes over the examples.")
@click.option("--rate", default=1e-4, type=POSITIVE, help="Peak learning rate.")
@seed_option
@text_option("--licence", help="Licence of QUESTIONS and the log, for the data card.")
@text_option("--out", metavar="DIR", help="Folder of the adapters. Default: `.ragfm-adapters`, next to the collection.")
@collection_options
def refresh(collection: str, as_json: bool, questions: Path | None, **options: Any) -> None:
    """Sync, train on the answer log and QUESTIONS, and adopt the new adapter if it is measurably better.

    Some of the new questions are held out. The new adapter is adopted if it is significantly better on them and not
    significantly worse on --old; otherwise nothing changes. `ragfm adapt back` undoes the last adoption.
    """
    from ragfm.training.refresh import RefreshSettings, next_folder
    from ragfm.training.refresh import refresh as refresh_adapter

    defaults = RefreshSettings()
    training = replace(defaults.training, **{name: options[name] for name in ("epochs", "rate", "seed")})
    given = {name: options[name] for name in ("old", "replay", "licence")}
    settings = replace(defaults, training=training, questions=questions, **given)
    synced = None
    with Collection.open(collection) as handle:
        if not options["no_sync"]:
            with show_progress("documents") as progress:
                synced = handle.sync(progress=progress)
            if not as_json:
                print_sync_report(synced)
        folder, changed = next_folder(handle, settings, options["out"])
        if changed:
            inputs = ", ".join(changed)
            print_note(f"The interrupted refresh had different inputs ({inputs}): a new one starts in {folder}.")
        with show_progress("questions") as progress:
            report = refresh_adapter(handle, folder, settings, progress=progress)
    _print_report(report, as_json, synced)


@click.command()
@click.option("--hours", default=1.0, type=POSITIVE, help="Total hours for writing questions, training and testing.")
@text_option("--writer", metavar="NAME", help="Reader that writes the questions. Default: the collection's reader.")
@seed_option
@text_option("--out", metavar="DIR", help="Folder of the adapters. Default: `.ragfm-adapters`, next to the collection.")
@collection_options
def auto(collection: str, as_json: bool, *, hours: float, writer: str | None, seed: int, out: str | None) -> None:
    """Train on questions that a reader writes about the collection, and adopt the adapter if it is measurably better.

    Some of the questions are held out; the new adapter is adopted if it is significantly better on them. After an
    interruption, the same command continues. `ragfm adapt back` undoes the adoption.
    """
    from ragfm.generation.readers import configured_reader
    from ragfm.training.auto_adapt import adapt_automatically

    with Collection.open(collection) as handle, show_progress("questions") as progress:
        name = writer or handle.settings.reader
        reader = configured_reader(name, handle.settings)
        report = adapt_automatically(handle, reader, hours, reader_name=name, seed=seed, out=out, progress=progress)
    _print_report(report, as_json)


def _print_report(report: RefreshReport, as_json: bool, synced: SyncReport | None = None) -> None:
    if as_json:
        print_json({**asdict(report), "ingest": asdict(synced) if synced else None})
        return
    print_text(f"trained on {report.examples['train']} examples, validated on {report.examples['valid']}")
    print_text(report.why)
    if report.adopted:
        print_text(f"Adopted: `adapter` in ragfm.toml is now {report.folder}. `ragfm adapt back` undoes this.")
    else:
        print_text(f"Not adopted: nothing changes. The new adapter is in {report.folder}.")


@click.command()
@collection_options
def back(collection: str, as_json: bool) -> None:
    """Serve the adapter that was served before the last refresh."""
    from ragfm.training.refresh import roll_back

    dropped, adapter = roll_back(Collection.open(collection).settings_file)
    text = f"{adapter or 'The default adapter'} is served again, instead of {dropped}."
    print_result({"gone": dropped, "adapter": adapter}, text, as_json=as_json)
