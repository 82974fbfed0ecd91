"""`ragfm tune`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from ragfm.cli.evaluation_data import data_collection, load_data, resumable
from ragfm.cli.options import (
    OUTPUT_FILE,
    collection_options,
    data_options,
    share_option,
    split_option,
    text_option,
    usage_error,
)
from ragfm.cli.output import print_json, print_note, print_table, print_text, print_written
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection
from ragfm.core.text import counted

_ANSWERS = ".ragfm-confidence.run"
"""Default file for the answers of --confidence until all are complete. It is hidden, so `ragfm ingest` skips it."""


@click.command()
@click.argument("questions", required=False, type=click.Path(exists=True))
@click.option("--confidence", is_flag=True, help="Calibrate the confidence of answers; QUESTIONS must have answers.")
@share_option("--keep-right", 0.9, (0.5, 1), "With --confidence: share of correct answers that must not be withheld.")
@click.option(
    "--corrected/--as-said",
    "corrects",
    default=None,
    help="With --confidence: whether the judge's text replaces the reader's where they differ. Default: the "
    "current setting.",
)
@click.option("--verified", is_flag=True, help="Promise an error rate of verified citations; uses `ragfm log review`.")
@click.option("--answered", is_flag=True, help="Choose the confidence of `answered`; QUESTIONS must have answers.")
@share_option("--error", 0.1, (0.001, 0.5), "With --verified or --answered: share of them that may be wrong.")
@share_option("--level", 0.95, (0.5, 0.9999), "With --verified or --answered: how sure the promise must be.")
@text_option("--adapter", metavar="DIR|none", help="With --confidence or --answered: LoRA adapter, or `none`.")
@click.option(
    "--out",
    type=OUTPUT_FILE,
    help="With --confidence or --answered: keep the answers in FILE; running the command again resumes it.",
)
@text_option("--reader", metavar="NAME", help="With --confidence or --answered: model that answers.")
@click.option("--limit", type=click.IntRange(min=20), metavar="N", help="Use a random sample of N questions.")
@split_option
@data_options
@click.option("--dry-run", is_flag=True, help="Measure, but change no settings.")
@collection_options
def tune(collection: str, as_json: bool, questions: str | None, dry_run: bool, **options: Any) -> None:
    """Find the weight of embeddings in hybrid search that works best on your questions; store it if it is better.

    QUESTIONS has the same format as for `ragfm eval retrieval`: a JSONL file about the collection, or a BEIR folder or
    SQuAD file, which contain their documents. The weight is chosen on one half of the questions and tested on the
    other; it changes only if the gain is significant.

    With --confidence, the reader answers QUESTIONS as in `ragfm eval answers`, and the confidence is
    calibrated on the results.

    With --verified, the labels of `ragfm log review` decide from which probability of the judge a citation is
    `verified`, so that at most the share --error of them is wrong.

    With --answered, the reader answers QUESTIONS, and `ask.wrong_cost` is set so that at most the share --error of the
    answers that are `answered` is wrong.
    """
    from ragfm.evaluation import store_weight, tune
    from ragfm.evaluation.settings_file import import_tomlkit

    if not dry_run:
        import_tomlkit()
    if options["verified"]:
        if questions is not None or options["confidence"] or options["answered"]:
            usage_error("--verified takes neither QUESTIONS nor --confidence or --answered.")
        _promise(collection, None, options, as_json=as_json, dry_run=dry_run)
        return
    if options["confidence"] and options["answered"]:
        usage_error("--answered and --confidence exclude each other. Calibrate the confidence first.")
    if options["confidence"] or options["answered"]:
        if questions is None:
            usage_error(f"--{'confidence' if options['confidence'] else 'answered'} requires QUESTIONS with answers.")
        run = _tune_confidence if options["confidence"] else _promise
        run(collection, questions, options, as_json=as_json, dry_run=dry_run)
        return
    for name in ("adapter", "reader", "out"):
        if options[name]:
            usage_error(f"--{name} requires --confidence or --answered.")
    if questions is None:
        usage_error("Specify QUESTIONS, about 100 or more.")
    data = load_data(questions, options)
    with data_collection(data, collection, options) as (handle, _), show_progress() as progress:
        report = tune(handle, data.questions, progress=progress)
    report = replace(report, about={"questions_from": data.name, **report.about})
    written = [] if dry_run else store_weight(report, Collection.open(collection).settings_file)
    if as_json:
        print_json({**asdict(report), "written": [str(path) for path in written]})
        return
    print_text(f"{counted(question=len(data.questions))} from {data.name}, {len(report.trials)} weights tried\n")
    best = list(report.trials[:5])
    if report.current not in best:
        best.append(report.current)
    rows = []
    for trial in best:
        weight = "auto" if trial.weight is None else f"{trial.weight:.2f}"
        rows.append(("*" if trial == report.current else "", weight, f"{trial.value:.4f}"))
    print_table(["", ">weight", f">{report.about['measure']}"], rows)
    print_text("  (*: current setting. The values are from the half used to choose, so the best ones are too high.)\n")
    print_text(report.why)
    if report.adopted:
        print_text(f"[search] weight = {report.best.weight}")
    _print_written_settings(written, dry_run=dry_run)


def _tune_confidence(collection: str, questions: str, options: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    from ragfm.evaluation import calibrate, store_calibration
    from ragfm.rag import Rag

    data = load_data(questions, options, answers=True)
    settings_file = Collection.open(collection).settings_file
    out = Path(options["out"] or settings_file.with_name(_ANSWERS))
    with data_collection(data, collection, options) as (handle, _):
        rag = Rag(handle, reader=options["reader"], adapter=options["adapter"])
        with resumable(str(out)) as progress:
            report = calibrate(
                rag,
                data.questions,
                keep=options["keep_right"],
                corrects=options["corrects"],
                out=out,
                progress=progress,
            )
    report = replace(report, about={"data": data.name, **report.about})
    written = [] if dry_run else store_calibration(report, settings_file)
    if not options["out"]:
        out.unlink()
    if as_json:
        print_json({**asdict(report), "written": [str(path) for path in written]})
        return
    about, calibration = report.about, report.calibration
    print_text(f"{about['answers']} answers to {about['data']}, {about['right']} of them correct\n")
    print_table(["", ">"], [(name, f"{weight:+.3f}") for name, weight in calibration.weights.items()], indent=2)
    print_text(f"\nAnswers with a confidence below {calibration.threshold:.4f} are withheld. Shares that are shown:")
    rows = []
    for kind, share in report.given.items():
        name = "answers to unanswerable questions" if kind == "unanswerable" else f"{kind} answers"
        rows.append((f"{100 * share:.1f} %", f"of {name}"))
    print_table([">", ""], rows, indent=2)
    print_text(f"\n{report.why} Mean calibration error: {report.error:.3f}.")
    print_written(options["out"])
    _print_written_settings(written, dry_run=dry_run)


def _promise(collection: str, questions: str | None, options: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    """Promise an error rate of answers to questions or, without them, of verified citations."""
    from ragfm.evaluation import evaluate_answers
    from ragfm.evaluation.settings_file import store_promise
    from ragfm.evaluation.verified_tuning import PromiseReport, promise_answered, promise_verified
    from ragfm.rag import Rag

    report: PromiseReport[Any]
    opened, limits = Collection.open(collection), {"error": options["error"], "confidence": options["level"]}
    details, out = dict[str, Any](), None
    if questions is None:
        basis, what = "labels", "A citation is verified from a probability"
        report = promise_verified(opened.answer_log.labels(), **limits)
    else:
        basis, what = "answers", "An answer is `answered` from a confidence"
        data, out = load_data(questions, options, answers=True), options["out"]
        with data_collection(data, collection, options, ask={"wrong_cost": 0.0}) as (handle, _):
            rag = Rag(handle, reader=options["reader"], adapter=options["adapter"])
            with resumable(out) as progress:
                answers = evaluate_answers(rag, data.questions, contexts=("retrieved",), out=out, progress=progress)
            report = promise_answered(answers, rag.answer_fingerprint, **limits)
        details["wrong_cost"] = report.promise and report.promise.wrong_cost
    written = store_promise(report.promise, opened.settings_file) if report.promise and not dry_run else []
    if as_json:
        print_json({**asdict(report), **details, "written": [str(path) for path in written]})
        return
    print_text(report.promise.guarantee(None).sentence if report.promise else f"The {basis} allow no promise.")
    print_text(report.why)
    if report.promise:
        print_text(f"{what} of {report.promise.threshold:.4f}.")
        for name, value in details.items():
            print_text(f"[ask] {name} = {value}")
    print_written(out)
    _print_written_settings(written, dry_run=dry_run)


def _print_written_settings(written: list[Path], *, dry_run: bool) -> None:
    print_written(*map(str, written))
    if dry_run:
        print_note("No settings were changed.")
