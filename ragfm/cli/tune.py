"""`ragfm tune`: the settings of search, and how far answers can be trusted, by measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.eval import check_options, data_options, load_data, opened, resumable, tell_written
from ragfm.cli.options import FILLED, OK, counting, shared
from ragfm.cli.output import print_json, printable

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.evaluation import CalibrationReport, Question, QuestionSet, TuneReport

_FILE = click.Path(dir_okay=False)
_ANSWERS = ".ragfm-confidence.run"
"""What --confidence has asked, until all is: a hidden file, which `ragfm ingest` leaves out."""


def _sizes(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in (value or "").split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers, as 64,128,256.") from None
    if any(size < 16 for size in sizes):
        raise click.BadParameter("a chunk has 16 tokens or more.")
    return sizes


@click.command()
@click.argument("questions", required=False, type=click.Path(exists=True))
@click.option("--chunk-sizes", metavar="N,N,…", callback=_sizes, help="Try chunks of so many tokens, too: the sources "
              "are ingested anew for each, into a temporary collection.")  # fmt: skip
@click.option("--write", default=100, show_default=True, type=click.IntRange(min=20), metavar="N",
              help="Without QUESTIONS: how many the reader writes.")  # fmt: skip
@click.option("--confidence", is_flag=True, help="Fit the confidence of answers, not search: QUESTIONS have answers.")
@click.option("--keep-right", default=0.9, show_default=True, type=click.FloatRange(0.5, 1), metavar="SHARE",
              help="With --confidence: of right answers, how many must not be withheld.")  # fmt: skip
@click.option("--corrected/--as-said", "corrects", default=None, help="With --confidence: whether the verifier's words "
              "are the answer where the reader's are others. Default: as now.")  # fmt: skip
@click.option("--adapter", metavar="DIR", type=FILLED, help="With --confidence: an adapter for the reader, or "
              "`none`.")  # fmt: skip
@click.option("--out", metavar="FILE", type=_FILE, help="Keep what is answered with --confidence, or written "
              "without QUESTIONS, there; a second run goes on with it.")  # fmt: skip
@click.option("--report", metavar="FILE", type=_FILE, help="With --confidence: write an HTML page.")
@click.option("--reader", metavar="NAME", type=FILLED, help="Without QUESTIONS, the model that writes them; with "
              "--confidence, the one that answers.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=20), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Which ones --limit picks, and which half chooses.")
@data_options
@click.option("--dry-run", is_flag=True, help="Measure, and write nothing.")
@shared
def tune(
    collection: str, as_json: bool, questions: str | None, chunk_sizes: tuple[int, ...], dry_run: bool, **options: Any
) -> int:  # fmt: skip
    """Find the settings of search that do best on your questions, and store them if they do.

    QUESTIONS is what `ragfm eval retrieval` takes: a JSONL file about the collection, or a BEIR folder or SQuAD file,
    which bring their documents. Without it, the reader writes some from the collection. The settings are chosen by one
    half of the questions and tested on the other; a gain within noise changes nothing.

    With --confidence it has the reader answer QUESTIONS, as `ragfm eval answers` does, and finds by what signs right
    answers are known.
    """
    from ragfm.evaluation import store_choice, tune
    from ragfm.evaluation.settings_file import toml_writer

    if not dry_run:
        toml_writer()
    if options["confidence"]:
        return _confidence(collection, questions, options, as_json=as_json, dry_run=dry_run)
    for name in ("adapter", "report"):
        if options[name]:
            raise click.UsageError(f"--{name} goes with --confidence.", click.get_current_context())
    if questions and options["out"]:
        raise click.UsageError("--out goes with --confidence, or without QUESTIONS.", click.get_current_context())
    loaded = _loaded(questions, options)
    check_options(loaded, options)
    with opened(loaded, collection, {**options, "mode": "hybrid"}) as (handle, _, _):
        asked = _written(handle, options) if loaded is None else loaded.questions
        with _stages() as progress:
            report = tune(handle, asked, sizes=chunk_sizes, seed=options["seed"], progress=progress)
    about = {"questions_from": "the reader" if loaded is None else loaded.name, **report.about}
    report = replace(report, about=about)
    written = [] if dry_run else store_choice(report, Path(collection).absolute().parent)
    if as_json:
        print_json({**asdict(report), "written": [str(path) for path in written]})
    else:
        _print(report, written, dry_run=dry_run)
        tell_written(options["out"])
    return OK


# --- Inside ------------------------------------------------------------------------------------------------------


def _confidence(
    collection: str, path: str | None, options: dict[str, Any], *, as_json: bool, dry_run: bool
) -> int:  # fmt: skip
    from ragfm.evaluation import calibrate, store_calibration
    from ragfm.evaluation.answer_report import write_confidence_html
    from ragfm.rag import Rag

    if path is None:
        raise click.UsageError("--confidence needs QUESTIONS with answers.", click.get_current_context())
    loaded = load_data(path, options, answers=True)
    check_options(loaded, options)
    folder = Path(collection).absolute().parent
    out = Path(options["out"] or folder / _ANSWERS)
    with opened(loaded, collection, {**options, "mode": "hybrid"}) as (handle, _, _):
        rag = Rag(handle, reader=options["reader"], adapter=options["adapter"])
        with resumable("answering", "answered", str(out)) as progress:
            report = calibrate(
                rag, loaded.questions, keep=options["keep_right"], corrects=options["corrects"], seed=options["seed"],
                out=out, progress=progress,
            )  # fmt: skip
    report = replace(report, about={"data": loaded.name, **report.about})
    if options["report"]:
        write_confidence_html(report, options["report"])
    written = [] if dry_run else store_calibration(report, folder)
    if not options["out"]:
        out.unlink()
    if as_json:
        print_json({**asdict(report), "written": [str(path) for path in written]})
    else:
        _print_confidence(report)
        tell_written(options["out"], options["report"])
        _tell(written, dry_run=dry_run)
    return OK


def _print_confidence(report: CalibrationReport) -> None:
    about, fitted = report.about, report.calibration
    click.echo(printable(f"{about['answers']} answers to {about['data']}, {about['right']} of them right\n"))
    for name, weight in fitted.weights.items():
        click.echo(f"  {name:<12}{weight:>+10.3f}")
    click.echo(f"\nBelow {fitted.threshold:.4f} an answer is withheld. Given are then")
    for kind, share in report.given.items():
        what = "answers to unanswerable questions" if kind == "unanswerable" else f"{kind} answers"
        click.echo(f"  {100 * share:>5.1f} % of {what}")
    click.echo(f"\n{report.why} It is off by {report.error:.3f} on average.")


def _tell(written: list[Path], *, dry_run: bool) -> None:
    for path in written:
        click.echo(printable(f"written: {path}"), err=True)
    if dry_run:
        click.echo("Nothing was written.", err=True)


def _loaded(path: str | None, options: dict[str, Any]) -> QuestionSet | None:
    if path is None:
        for name in ("split", "articles", "distractors", "limit"):
            if options[name]:
                raise click.UsageError(f"--{name} goes with QUESTIONS.", click.get_current_context())
        return None
    if options["reader"]:
        raise click.UsageError("--reader goes without QUESTIONS, or with --confidence.", click.get_current_context())
    return load_data(path, options)


def _written(collection: Collection, options: dict[str, Any]) -> list[Question]:
    from ragfm.evaluation import write_questions
    from ragfm.generation.readers import configured_reader

    name = options["reader"] or collection.settings.reader
    reader = configured_reader(name, collection.settings)
    with resumable("writing", "written", options["out"]) as progress:
        return write_questions(collection, reader, options["write"], seed=options["seed"], out=options["out"],
                               reader_name=name, progress=progress)  # fmt: skip


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, one after the other."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        shown: dict[str, Callable[[int, int], None]] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in shown or done <= 1:
                stack.close()
                shown.clear()
                unit = "questions" if what == "asking" else "documents"
                shown[what] = stack.enter_context(counting(what, unit))
            shown[what](done, total)

        yield show


def _print(report: TuneReport, written: list[Path], *, dry_run: bool) -> None:
    from ragfm.evaluation import choice_keys

    questions = report.about["questions"]
    click.echo(printable(f"{questions['count']} questions from {report.about['questions_from']}, "
                         f"{len(report.trials)} settings tried"))  # fmt: skip
    click.echo(f"\n{'':2}{'fusion':<8}{'weight':>8}{'candidates':>12}{'chunk size':>12}{report.about['measure']:>10}")
    shown = list(report.trials[:5])
    shown += [trial for trial in report.trials if trial.choice == report.current and trial not in shown]
    for trial in shown:
        choice = trial.choice
        mark = "*" if choice == report.current else " "
        weight = "-" if choice.fusion == "rrf" else "auto" if choice.weight is None else f"{choice.weight:.2f}"
        click.echo(f"{mark} {choice.fusion:<8}{weight:>8}{choice.candidates:>12}{choice.chunk_size or 'default':>12}"
                   f"{trial.value:>10.4f}")  # fmt: skip
    click.echo("  (* is set now; the values are of the half that chooses, so the first ones are too good)\n")
    click.echo(report.why)
    if report.adopted:
        for section, values in choice_keys(report.best, report.current).items():
            click.echo(printable(f"[{section}] " + ", ".join(f"{key} = {value!r}" for key, value in values.items())))
        if report.best.chunk_size != report.current.chunk_size:
            click.echo("`ragfm ingest` splits the documents anew.")
    _tell(written, dry_run=dry_run)
