"""`ragfm adapt refresh` and `back`: a reader that goes on learning, and one step back."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.adapt_retriever import stages
from ragfm.cli.options import FILLED, OK, shared
from ragfm.cli.output import print_json, print_report, printable

if TYPE_CHECKING:
    from ragfm.training.refresh import Refreshed

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("refresh")
@click.argument("questions", required=False, type=_FILE)
@click.option("--old", metavar="FILE", type=_FILE, help="Questions with answers about the collection, that must not be "
              "answered worse.")  # fmt: skip
@click.option("--replay", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Examples that were learned before: as many as there are new ones are learned again.")  # fmt: skip
@click.option("--no-sync", is_flag=True, help="Take the documents as they are in the collection.")
@click.option("--epochs", default=2.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="How often each example is seen.")  # fmt: skip
@click.option("--rate", default=1e-4, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="The highest learning rate.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of all that is random.")
@click.option("--licence", metavar="TEXT", type=FILLED, help="The licence of QUESTIONS and the log, for the card.")
@click.option("--out", metavar="DIR", type=FILLED, help="Where adapters lie. Default: beside the collection, "
              "`.ragfm-adapters`.")  # fmt: skip
@shared
def refresh_command(collection: str, as_json: bool, questions: Path | None, **options: Any) -> int:
    """Sync, learn from the answer log and from QUESTIONS, and serve the result where it is shown to be better.

    Of new questions a part is never learned from: the new adapter is adopted if it answers these better, beyond noise,
    and those of --old no worse. Else all stays as it was. `ragfm adapt back` goes one step back.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
    from ragfm.collection import Collection
    from ragfm.training.refresh import RefreshSettings, inputs_of, next_folder, refresh

    with Collection.open(collection) as handle:
        report = None if options["no_sync"] else handle.sync()
        if report and not as_json:
            print_report(report)
        default = RefreshSettings()
        training = replace(default.training, **{name: options[name] for name in ("epochs", "rate", "seed")})
        settings = replace(
            default,
            training=training,
            questions=questions,
            **{name: options[name] for name in ("old", "replay", "licence")},
        )
        place = Path(options["out"] or handle.path.with_name(f"{handle.path.name}-adapters"))
        folder, different = next_folder(place, inputs_of(handle, settings), handle.settings.adapter)
        if different:
            why = f"The interrupted refresh had other inputs ({', '.join(different)})"
            click.echo(printable(f"{why}: a new one begins in {folder}."), err=True)
        with stages() as progress:
            done = refresh(handle, folder, settings, progress=progress)
    if as_json:
        print_json({**asdict(done), "ingest": asdict(report) if report else None})
    else:
        _print(done)
    return OK


@click.command("back")
@shared
def back_command(collection: str, as_json: bool) -> int:
    """Serve what was served before the last refresh that was adopted."""
    from ragfm.training.refresh import step_back

    gone, now = step_back(Path(collection).absolute().parent)
    if as_json:
        print_json({"gone": gone, "adapter": now})
    else:
        click.echo(printable(f"{gone} is no longer served; {now or 'the default'} is."))
    return OK


def _print(done: Refreshed) -> None:
    counts = done.examples
    click.echo(f"learned from {counts['train']} examples, {counts['valid']} to validate with")
    click.echo(printable(done.why))
    if done.adopted:
        click.echo(printable(f"Adopted: {done.folder} is now `adapter` in ragfm.toml; `ragfm adapt back` undoes it."))
    else:
        click.echo(printable(f"Nothing changes. What was learned lies in {done.folder}."))
