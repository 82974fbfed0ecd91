"""`ragfm adapt …`: the reader taught on your own documents."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.eval import check_options, data_options, load_data, opened
from ragfm.cli.options import FILLED, INTERRUPTED, OK, counting, shared
from ragfm.cli.output import print_json, printable
from ragfm.core.errors import DataError
from ragfm.models.adapters import METHODS, read_record
from ragfm.models.model_lookup import find_model

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.evaluation import QuestionSet
    from ragfm.rag import Rag
    from ragfm.training import Dataset, HeldOut, Recipe
    from ragfm.training.adapter_export import Agreement
    from ragfm.training.base_model import Base
    from ragfm.training.trainer import Progress, Training, TrainSettings

_FILES = click.Path(exists=True)
_EVERY = 10.0  # seconds between two lines about a training, where there is no bar


@click.group()
def adapt() -> None:
    """Teach the reader to answer from your documents: examples, training, export."""


@adapt.command("data")
@click.argument("questions", required=False, type=_FILES)
@click.option("--write", metavar="N", type=click.IntRange(min=1), help="Without QUESTIONS: the reader writes N, with "
              "their answers, from the collection. After Ctrl-C, the same command goes on.")  # fmt: skip
@click.option("--from-log", is_flag=True, help="With or without QUESTIONS: what users found good in the answer log, "
              "and what they corrected.")  # fmt: skip
@click.option("--reader", metavar="NAME", type=FILLED, help="The reader that is taught; with --write it writes, too.")
@click.option("-k", type=click.IntRange(min=1), metavar="N", help="How many passages it is given.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Which ones --limit picks, and all that is random.")
@click.option("--abstain", default=1 / 3, show_default="1/3", type=click.FloatRange(0, 0.9), metavar="SHARE",
              help="How many have the answer that it is not known.")  # fmt: skip
@click.option("--near", default=0.5, show_default=True, type=click.FloatRange(0, 1), metavar="SHARE",
              help="How many of these are near misses.")  # fmt: skip
@click.option("--valid", default=0.1, show_default=True, type=click.FloatRange(0, 0.5), metavar="SHARE",
              help="How many are kept to validate with, by whole documents.")  # fmt: skip
@click.option("--answers", "form", default="phrase", show_default=True, type=click.Choice(["phrase", "quoted"]),
              help="The answer alone, or with the sentence that it is from.")  # fmt: skip
@click.option("--keep-order", is_flag=True, help="Passages in the order of the search, not shuffled.")
@click.option("--apart", is_flag=True, help="Each question over its own passages, not those of another one about the "
              "same text; training takes several times as long.")  # fmt: skip
@click.option("--exclude-data", multiple=True, metavar="FILE", type=_FILES, help="Data to be judged by: none of its "
              "questions and paragraphs is learned from; may be repeated.")  # fmt: skip
@click.option("--licence", metavar="TEXT", type=FILLED, help="The licence of the data, for the card.")
@data_options
@click.option("--out", default="ragfm-examples", show_default=True, metavar="DIR", type=FILLED,
              help="Where the examples and their card are written.")  # fmt: skip
@shared
def data_command(collection: str, as_json: bool, questions: str | None, **options: Any) -> int:
    """Make examples to train with, from QUESTIONS whose answers are known.

    QUESTIONS is a SQuAD file, which brings its documents, or a JSONL file about the collection with `question`, `uri`
    and `answers` in each line. docs/adaptation.md has the formats.
    """
    from ragfm.training import write_dataset

    out = str(options["out"])
    if Path(out).is_file():
        raise DataError(f"{out} is a file.", "Name a folder for the examples: --out.")
    loaded = _loaded(questions, options)
    check_options(loaded, options)
    with opened(loaded, collection, {**options, "mode": "hybrid"}) as (handle, _, _):
        dataset = _made(handle, loaded, options)
    write_dataset(dataset, out)
    if as_json:
        print_json({**dataset.card, "out": out})
    else:
        _print_card(dataset, out)
    return OK


@adapt.command("train")
@click.argument("examples", type=FILLED)
@click.option("--base", default="bundled", show_default=True, metavar="NAME", type=FILLED,
              help="The model: a folder of safetensors, or the GGUF file that will serve.")  # fmt: skip
@click.option("--method", default="lora", show_default=True, type=click.Choice(METHODS), help="How it is adapted.")
@click.option("--from", "start", metavar="ADAPTER", type=FILLED, help="An adapter to go on from, with its rank: a "
              "folder, or a GGUF file.")  # fmt: skip
@click.option("--rank", default=16, show_default=True, type=click.IntRange(min=1), help="Of lora, dora and qlora.")
@click.option("--dropout", default=0.0, show_default=True, type=click.FloatRange(0, 0.9), help="Ditto.")
@click.option("--virtual-tokens", "tokens", default=20, show_default=True, type=click.IntRange(min=1),
              help="Of prefix and prompt.")  # fmt: skip
@click.option("--epochs", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="How often each example is seen.")  # fmt: skip
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=1), help="Examples of a step.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="The highest learning rate. Default: by "
              "method.")  # fmt: skip
@click.option("--judge", default="loss", show_default=True, type=click.Choice(["loss", "answers"]),
              help="What validation measures, and the best weights are picked by.")  # fmt: skip
@click.option("--patience", default=3, show_default=True, type=click.IntRange(min=1),
              help="It ends after so many validations without a better one.")  # fmt: skip
@click.option("--most-tokens", default=2048, show_default=True, type=click.IntRange(min=16), metavar="N",
              help="Longer examples are left out.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of all that is random.")
@click.option("--licence", metavar="TEXT", type=FILLED, help="The licence of the adapter, for its record. "
              "Default: that of the adapter it goes on from.")  # fmt: skip
@click.option("--price-per-hour", type=click.FloatRange(min=0), metavar="P", help="What an hour of this machine costs.")
@click.option("--dry-run", is_flag=True, help="Say what it takes, and don't train.")
@click.option("--out", default="ragfm-adapter", show_default=True, metavar="DIR", type=FILLED,
              help="The adapter's folder; a second run goes on there.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and what is going on.")
def train_command(examples: str, as_json: bool, *, dry_run: bool, **options: Any) -> int:
    """Train an adapter on EXAMPLES, a folder that `ragfm adapt data` wrote or a file of examples.

    Before it starts, a few batches are measured, and it says how long it will take. When it is stopped or killed, the
    same command goes on from the last checkpoint.
    """
    # Threads of OpenMP that wait for each other spin for milliseconds, which takes what they wait for from them where
    # the machine is busy; it must be said before torch is loaded. See ragfm/models/llama_library.py.
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
    from ragfm.training.adapter_folder import finish
    from ragfm.training.distributed import join, leave
    from ragfm.training.examples import TRAIN, VALID, read_card, read_examples
    from ragfm.training.output_checks import check_training
    from ragfm.training.trainer import Training

    place = Path(examples)
    folder = place.parent if place.is_file() else place
    train = read_examples(place if place.is_file() else place / TRAIN)
    valid = read_examples(folder / VALID) if not place.is_file() and (folder / VALID).is_file() else []
    if not train:
        raise DataError(f"There is no example in {examples} to train with.", "Make some with `ragfm adapt data`.")
    check_training(Path(options["out"]), find_model(options["base"], "reader"))
    processes = join()
    if processes.count == 1:
        _tell_of_gpus()
    base = _base(options)
    training = Training(base, train, options["out"], _settings(options), valid=valid)
    if not processes.first:
        try:
            if not dry_run:
                training.run()
        except KeyboardInterrupt:
            return INTERRUPTED  # the first one says so
        leave()
        return OK
    plan = _plan(training, options)
    if dry_run:
        if as_json:
            print_json({"plan": plan})
        leave()
        return OK
    try:
        with _training() as progress:
            numbers = training.run(progress)
    except KeyboardInterrupt:
        click.echo(printable(f"what was learned is kept in {options['out']}, and the same command goes on there"),
                   err=True)  # fmt: skip
        raise
    leave()
    record = finish(training, numbers, card=read_card(folder), licence=options["licence"])
    if as_json:
        print_json({"plan": plan, "adapter": {**asdict(record)}, "out": options["out"]})
    else:
        loss = numbers["loss"]
        click.echo(f"loss {loss['first']:.3f} → {loss['last_5']:.3f} in {numbers['steps']} steps, "
                   f"{numbers['seconds']:.0f} s; the weights of step {numbers['kept_step']} are kept")  # fmt: skip
        click.echo(printable(f"written: {options['out']}"), err=True)
    return OK


@adapt.command("export")
@click.argument("adapter", type=FILLED)
@click.option("--to", "form", default="gguf", show_default=True, type=click.Choice(["gguf", "merged", "peft"]),
              help="A GGUF adapter for llama.cpp; whole weights as safetensors; or, from a GGUF adapter, PEFT's "
              "form.")  # fmt: skip
@click.option("--base", metavar="NAME", type=FILLED, help="The model. Default: the one it was trained on. A GGUF "
              "file of that model makes an adapter for this file.")  # fmt: skip
@click.option("--quantise", type=click.Choice(["f16", "q8_0", "q4_0", "iq4_nl"]), help="With --to merged, over a base "
              "that is a GGUF file: write such a file, in this form.")  # fmt: skip
@click.option("--dtype", default="f16", show_default=True, type=click.Choice(["f16", "f32"]), help="Of a GGUF adapter.")
@click.option("--out", metavar="PATH", type=FILLED, help="Where to. Default: adapter.gguf in the adapter's folder.")
@click.option("--check", metavar="FILE", type=_FILES, help="Ask the prompts of these examples of transformers with the "
              "adapter and of llama.cpp with the GGUF adapter, and compare.")  # fmt: skip
@click.option("--prompts", default=50, show_default=True, type=click.IntRange(min=1), help="How many, with --check.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and what is going on.")
def export_command(adapter: str, as_json: bool, form: str, check: str | None, prompts: int, **options: Any) -> int:
    """Write an ADAPTER in the form that another reader wants, and compare what both say."""
    from ragfm.training.adapter_export import export_adapter

    if check and form != "gguf":
        raise click.UsageError("--check compares a GGUF adapter.", click.get_current_context())
    if options["quantise"] and form != "merged":
        raise click.UsageError("--quantise goes with --to merged.", click.get_current_context())
    written = export_adapter(adapter, form, out=options["out"], base=options["base"], dtype=options["dtype"],
                             quantisation=options["quantise"])  # fmt: skip
    compared = _compared(adapter, written, check, prompts, options["base"]) if check else None
    if as_json:
        print_json({"out": str(written), "check": asdict(compared) if compared else None})
    else:
        if compared:
            click.echo(printable(f"{compared.equal} of {compared.prompts} texts are the same in both readers, "
                                 f"token F1 between them {compared.f1:.3f}"))  # fmt: skip
            for one in compared.different[:3]:
                click.echo(printable(f"  {one[0]!r} by transformers, {one[1]!r} by llama.cpp"))
        click.echo(printable(f"written: {written}"), err=True)
        if form == "gguf" and not options["base"] and find_model(read_record(adapter).base["name"], "reader").is_dir():
            click.echo("It was trained on a folder; to serve over a GGUF file of that model, name it: --base FILE.gguf",
                       err=True)  # fmt: skip
    return OK


# --- Inside ------------------------------------------------------------------------------------------------------


def _loaded(path: str | None, options: dict[str, Any]) -> QuestionSet | None:
    context = click.get_current_context()
    if path is None:
        if not options["write"] and not options["from_log"]:
            raise click.UsageError("Name a file of questions, or have some written: --write N.", context)
        for name in ("split", "articles", "distractors", "limit"):
            if options[name]:
                raise click.UsageError(f"--{name} goes with QUESTIONS.", context)
        return None
    if options["write"]:
        raise click.UsageError("--write goes without QUESTIONS.", context)
    loaded = load_data(path, options, answers=True, by_document=not options["apart"])
    if loaded.documents is not None and options["from_log"]:
        raise click.UsageError("--from-log goes with questions about the collection.", context)
    return loaded


def _made(collection: Collection, data: QuestionSet | None, options: dict[str, Any]) -> Dataset:
    from ragfm.generation.answer_log import AnswerLog
    from ragfm.rag import Rag
    from ragfm.training import Recipe, held_out, judged, logged_examples, with_examples

    held = held_out(options["exclude_data"])
    if unknown := held.unknown(collection):
        click.echo(printable(f"{len(unknown)} addresses of --exclude-data are of no document here, as {min(unknown)}: "
                             "they keep nothing apart."), err=True)  # fmt: skip
    rag = Rag(collection, reader=options["reader"] or collection.settings.reader, k=options["k"])
    recipe = Recipe(abstain=options["abstain"], near=options["near"], valid=options["valid"], form=options["form"],
                    shuffle=not options["keep_order"], together=not options["apart"], seed=options["seed"])  # fmt: skip
    dataset = _asked(rag, data, recipe, held, options) if data or options["write"] else None
    if options["from_log"]:
        entries = judged(AnswerLog.for_collection(collection.path).entries())
        if not entries and dataset is None:
            raise DataError("No answer in the log has been found good or put right.",
                            "`ragfm log list` shows them, `ragfm log thumbs ID up` says that one is good.")  # fmt: skip
        examples, left_out = logged_examples(rag, entries, held=held)
        source = {"name": "the answer log", "licence": options["licence"], "left_out": dict(left_out)}
        dataset = with_examples(rag, dataset, examples, recipe, left_out, sources=[source] if examples else [],
                                held_out=held.sources)  # fmt: skip
    assert dataset
    return dataset


def _asked(rag: Rag, data: QuestionSet | None, recipe: Recipe, held: HeldOut, options: dict[str, Any]) -> Dataset:
    """Examples from questions, or from those that the reader writes."""
    from ragfm.core.output_folder import make_output
    from ragfm.evaluation import write_questions
    from ragfm.training import build_examples

    if data is None:
        with counting("writing", "questions") as progress:
            asked = write_questions(rag.collection, rag.reader, options["write"], seed=options["seed"], answers=True,
                                    out=make_output(options["out"]) / "written.run", reader_name=rag.reader_name,
                                    progress=progress)  # fmt: skip
    else:
        asked = list(data.questions)
    source = {
        "name": data.name if data else f"written by {rag.reader_name}",
        "licence": options["licence"],
        "left_out": dict(data.left_out if data else {}),
    }
    about = {"sources": [source], "reader": rag.reader_name, "limit": options["limit"]}
    with counting("making", "examples") as progress:
        return build_examples(rag, asked, recipe, held=held, about=about, alone=not options["from_log"],
                              progress=progress)  # fmt: skip


def _print_card(dataset: Dataset, out: str) -> None:
    card = dataset.card
    counts, tokens = card["examples"], card["lengths"]["prompt_tokens"]
    click.echo(f"{counts['train']} examples to train with, {counts['valid']} to validate with")
    for what in ("kinds", "left_out"):
        told = ", ".join(f"{name} {count}" for name, count in card[what].items())
        click.echo(printable(f"{what.replace('_', ' ')}: {told or 'none'}"))
    click.echo(f"tokens of a prompt: median {tokens['p50']}, 95 % up to {tokens['p95']}, at most {tokens['max']}")
    click.echo(printable(f"written: {Path(out) / 'train.jsonl'}, valid.jsonl, card.json"), err=True)


def _base(options: Mapping[str, Any]) -> Base:
    from ragfm.training.base_model import Base

    return Base(options["base"], four_bit=options["method"] == "qlora")


def _tell_of_gpus() -> None:
    from torch import cuda

    if (count := cuda.device_count()) > 1:
        click.echo(f"{count} GPUs are here, and one is used. All learn with `accelerate launch --multi_gpu "
                   f"--num_processes {count} -m ragfm adapt train …`.", err=True)  # fmt: skip


def _settings(options: Mapping[str, Any]) -> TrainSettings:
    from ragfm.training.methods import MethodSettings
    from ragfm.training.trainer import TrainSettings

    method = MethodSettings(**{name: options[name] for name in ("method", "rank", "dropout", "tokens")})
    rest = ("epochs", "batch", "rate", "judge", "patience", "most_tokens", "seed", "start")
    return TrainSettings(method, **{name: options[name] for name in rest})


def _plan(training: Training, options: Mapping[str, Any]) -> dict[str, Any]:
    """What it takes, measured and said."""
    estimate = training.estimate()
    price = options["price_per_hour"]
    cost = None if price is None else estimate.seconds / 3600 * price
    plan = {"examples": training.examples, "valid_examples": training.valid_examples, "too_long": training.too_long,
            "tokens": training.tokens, "steps": len(training.steps), "cost": cost, **asdict(estimate)}  # fmt: skip
    told = f", {training.too_long} too long" if training.too_long else ""
    click.echo(f"{training.examples} examples, {training.valid_examples} to validate with{told}; "
               f"{training.tokens:,} tokens in {len(training.steps)} steps", err=True)  # fmt: skip
    click.echo(f"{options['method']}: {estimate.learned:,} of {estimate.parameters:,} numbers learn "
               f"({100 * estimate.learned / estimate.parameters:.2f} %)", err=True)  # fmt: skip
    click.echo(f"about {_time(estimate.seconds)} at {estimate.tokens_per_second:.0f} tokens/s, "
               f"{estimate.peak_mb:,.0f} MB of memory, {estimate.disk_mb:,.0f} MB of disk"
               + ("" if cost is None else f", cost {cost:.2f}"), err=True)  # fmt: skip
    return plan


@contextmanager
def _training() -> Iterator[Callable[[Progress], None]]:
    """A bar with the loss, or lines."""
    from tqdm import tqdm

    told = monotonic()
    with tqdm(desc="training", unit="step", file=sys.stderr, leave=False, dynamic_ncols=True,
              disable=not sys.stderr.isatty()) as bar:  # fmt: skip

        def show(at: Progress) -> None:
            nonlocal told
            bar.total = at.steps
            bar.update(at.step - bar.n)
            valid = "" if at.valid is None else f", validation {at.valid:.3f}"
            words = f"loss {at.loss:.3f}{valid}, {at.tokens_per_second:.0f} tokens/s, {_time(at.seconds_left)} left"
            bar.set_postfix_str(words)
            if not sys.stderr.isatty() and monotonic() - told >= _EVERY:
                click.echo(f"step {at.step} of {at.steps}: {words}", err=True)
                told = monotonic()

        yield show


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if minutes > 2 else f"{60 * minutes + rest} s"


def _compared(adapter: str, gguf: Path, check: str, prompts: int, base: str | None) -> Agreement:
    from ragfm.training.adapter_export import compare_readers
    from ragfm.training.examples import read_examples

    with counting("asking", "prompts") as progress:
        return compare_readers(adapter, gguf, read_examples(check)[:prompts], base=base, progress=progress)
