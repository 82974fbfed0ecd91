"""`ragfm adapt …`: fine-tuning of the reader and the embedder."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.evaluation_data import (
    check_no_documents,
    data_collection,
    load_data,
    print_how_to_continue,
    resumable,
)
from ragfm.cli.help import CommandGroup
from ragfm.cli.options import (
    NON_EMPTY,
    POSITIVE,
    collection_options,
    data_options,
    json_options,
    k_option,
    limit_option,
    out_folder_option,
    question_options,
    share_option,
    split_option,
    text_option,
    usage_error,
)
from ragfm.cli.output import print_json, print_note, print_table, print_text, print_written
from ragfm.cli.progress_bar import format_seconds, show_progress
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output
from ragfm.models.adapters import METHODS, read_record
from ragfm.models.model_lookup import find_model

if TYPE_CHECKING:
    from ragfm.training import TrainingEstimate

_DATA = click.Path(exists=True)
_HELD_OUT = 0.3  # share of the questions of a retriever: half select the epoch, half test the result


@click.group(cls=CommandGroup)
def adapt() -> None:
    """Fine-tune the reader or the embedder on your documents."""


@adapt.command()
@click.argument("questions", required=False, type=_DATA)
@click.option("--from-log", is_flag=True, help="Also use answers from the log that were rated good or corrected.")
@text_option("--reader", metavar="NAME", help="Reader to fine-tune.")
@k_option
@limit_option
@share_option("--abstain", 1 / 3, (0, 0.9), "Share of examples whose answer is an abstention.", show_default="1/3")
@share_option("--valid", 0.1, (0, 0.5), "Share of examples for validation; a document's examples stay together.")
@click.option(
    "--exclude-data",
    multiple=True,
    metavar="FILE",
    type=_DATA,
    help="Evaluation data whose questions and paragraphs must not be in the examples; may be repeated.",
)
@text_option("--licence", help="Licence of the data, for the data card.")
@data_options
@out_folder_option("ragfm-examples", "Folder for the examples and their data card.")
@collection_options
def data(collection: str, as_json: bool, questions: str | None, out: str, **options: Any) -> None:
    """Create training examples from QUESTIONS with known answers.

    QUESTIONS is a SQuAD file, which contains its documents, or a JSONL file of questions about the collection with
    `question`, `uri` and `answers` in each line. docs/adaptation.md describes the formats.
    """
    from ragfm.rag import Rag
    from ragfm.training import Recipe, load_held_out, make_dataset, write_dataset

    if Path(out).is_file():
        raise DataError(f"'{out}' is a file.", "Specify a folder for the examples with --out.")
    loaded = None
    if questions is None:
        if not options["from_log"]:
            usage_error("Specify a file of questions, or use --from-log.")
        if options["limit"]:
            usage_error("--limit requires QUESTIONS.")
        check_no_documents(options)
    else:
        loaded = load_data(questions, options, answers=True, by_document=True)
        if loaded.documents is not None and options["from_log"]:
            usage_error("--from-log requires questions about the collection.")
    recipe = Recipe(**{name: options[name] for name in ("abstain", "valid")})
    make_output(out)  # an error now loses nothing
    with data_collection(loaded, collection, options) as (handle, _):
        held_out = load_held_out(options["exclude_data"])
        if unknown := held_out.uris - {info.uri for info in handle.documents()}:
            print_note(
                f"Warning: {len(unknown)} URIs of --exclude-data, such as {min(unknown)}, are not in the collection. "
                "They exclude nothing."
            )
        with show_progress("questions") as progress:
            dataset = make_dataset(
                Rag(handle, reader=options["reader"] or handle.settings.reader, k=options["k"]),
                loaded,
                recipe,
                from_log=options["from_log"],
                held_out=held_out,
                licence=options["licence"],
                limit=options["limit"],
                progress=progress,
            )
    write_dataset(dataset, out)
    if as_json:
        print_json({**dataset.card, "out": out})
    else:
        card = dataset.card
        counts, tokens = card["examples"], card["lengths"]["prompt_tokens"]
        print_text(f"{counts['train']} training examples, {counts['valid']} validation examples")
        for key in ("kinds", "left_out"):
            text = ", ".join(f"{name} {count}" for name, count in card[key].items())
            print_text(f"{key.replace('_', ' ')}: {text or 'none'}")
        print_text(f"prompt tokens: median {tokens['p50']}, 95th percentile {tokens['p95']}, maximum {tokens['max']}")
        print_written(*(str(Path(out) / name) for name in ("train.jsonl", "valid.jsonl", "card.json")))


@adapt.command()
@click.argument("examples", type=NON_EMPTY)
@text_option(
    "--base",
    default="bundled",
    metavar="NAME",
    help="Base model: a folder of safetensors, or the GGUF file that will be served.",
)
@click.option("--method", default="lora", type=click.Choice(METHODS), help="Fine-tuning method.")
@text_option(
    "--from",
    "start",
    metavar="ADAPTER",
    help="Adapter to train further, with its rank: a folder, a GGUF file, or `bundled` for the one that ships with the "
    "bundled reader. Default: none; training starts from the bare model.",
)
@click.option("--rank", default=16, type=click.IntRange(min=1), help="Rank of the adapter (lora, qlora).")
@click.option("--epochs", default=1.0, type=POSITIVE, help="Number of passes over the examples.")
@click.option("--batch", default=16, type=click.IntRange(min=1), help="Examples per step.")
@click.option("--rate", type=POSITIVE, help="Peak learning rate. Default: depends on the method.")
@click.option(
    "--most-tokens", default=2048, type=click.IntRange(min=16), metavar="N", help="Skip examples longer than N tokens."
)
@text_option("--licence", help="Licence of the adapter. Default: that of the adapter given by --from.")
@click.option("--dry-run", is_flag=True, help="Estimate time and memory without training.")
@out_folder_option("ragfm-adapter", "Folder of the adapter; a second run resumes there.")
@json_options
def train(
    examples: str, as_json: bool, *, dry_run: bool, out: str, base: str, licence: str | None, **options: Any
) -> None:
    """Train an adapter on EXAMPLES, a folder written by `ragfm adapt data` or a file of examples.

    Time and memory are estimated from a few batches before training starts. After an interruption, the same command
    continues from the last checkpoint.
    """
    from ragfm.training import TrainSettings, estimate_training
    from ragfm.training import train as train_adapter

    settings = TrainSettings(**options)
    start, plan = settings.start, dict[str, Any]()

    def show_estimate(estimate: TrainingEstimate) -> None:
        plan.update(asdict(estimate))
        skipped = f", {estimate.too_long} skipped as too long" if estimate.too_long else ""
        share = 100 * estimate.learned / estimate.parameters
        print_note(f"base: {base}, {f'continuing the adapter {start}' if start else 'without an adapter'}")
        if base == "bundled" and not start:
            print_note("To continue the adapter that ships with it instead, add `--from bundled`.")
        print_note(
            f"{estimate.examples} examples, {estimate.valid_examples} validation examples{skipped}; "
            f"{estimate.tokens:,} tokens in {estimate.steps} steps"
        )
        if not estimate.valid_examples:
            print_note(
                "Warning: there are no validation examples, so training does not notice when it gets worse, and the "
                "last weights are kept. `ragfm adapt data` keeps some if the questions are about several documents."
            )
        print_note(
            f"{settings.method}: {estimate.learned:,} of {estimate.parameters:,} parameters are trained ({share:.2f} %)"
        )
        print_note(
            f"about {format_seconds(estimate.seconds)} at {estimate.tokens_per_second:.0f} tokens/s, "
            f"{estimate.peak_mb:,.0f} MB of memory, {estimate.disk_mb:,.0f} MB of disk"
        )

    if dry_run:
        estimate = estimate_training(examples, base, out, settings=settings)
        show_estimate(estimate)
        if as_json:
            print_json({"plan": plan})
        return
    try:
        with show_progress() as progress:
            record = train_adapter(
                examples, base, out, settings=settings, licence=licence, on_estimate=show_estimate, progress=progress
            )
    except KeyboardInterrupt:
        print_how_to_continue(out)
        raise
    if as_json:
        print_json({"plan": plan, "adapter": asdict(record), "out": out})
    else:
        figures = record.numbers
        loss = figures["loss"]
        print_text(
            f"loss {loss['first']:.3f} → {loss['last_5']:.3f} in {figures['steps']} steps, {figures['seconds']:.0f} s; "
            f"the weights of step {figures['kept_step']} are kept"
        )
        print_written(out)


@adapt.command()
@click.argument("adapter", type=NON_EMPTY)
@click.option(
    "--to",
    "form",
    default="gguf",
    type=click.Choice(["gguf", "merged", "peft"]),
    help="Format: a GGUF adapter for llama.cpp, the merged model as safetensors, or (from a GGUF adapter) a PEFT "
    "folder.",
)
@text_option(
    "--base",
    metavar="NAME",
    help="Base model. Default: the one that the adapter was trained on. Specify a GGUF file to export for that file.",
)
@text_option("--out", metavar="PATH", help="Output. Default: adapter.gguf in the adapter's folder.")
@json_options
def export(adapter: str, as_json: bool, form: Any, base: str | None, out: str | None) -> None:
    """Export an ADAPTER to the format of a different reader."""
    from ragfm.training.adapter_export import export_adapter

    written = export_adapter(adapter, form, out=out, base=base)
    if as_json:
        print_json({"out": str(written)})
        return
    print_written(str(written))
    if form == "gguf":
        serving = find_model(base or read_record(adapter).base["name"], "reader")
        if serving.is_dir():
            print_note("The base is a folder. To serve over a GGUF file of it, export with --base FILE.gguf.")
        else:
            print_text(f"llama-server --model {serving} --lora-scaled {written}:0")


@adapt.command()
@click.argument("questions", type=_DATA)
@text_option("--base", default="bundled", metavar="NAME", help="Embedder to start from.")
@click.option(
    "--epochs",
    default=3,
    type=click.IntRange(min=1),
    help="Number of passes over the questions; the best epoch on held-out questions is kept.",
)
@click.option("--rate", default=3e-5, type=POSITIVE, help="Peak learning rate.")
@split_option
@question_options
@out_folder_option("ragfm-retriever", "Folder of the model; a second run resumes there.")
@collection_options
def retriever(collection: str, as_json: bool, questions: str, out: str, **options: Any) -> None:
    """Fine-tune the embedder on QUESTIONS, and measure the gain.

    QUESTIONS has the same format as for `ragfm eval retrieval`. Hard negatives are other passages that a search
    returns. The collection is not changed; the output says how to adopt the result.
    """
    from ragfm.training.hard_negatives import split_questions
    from ragfm.training.retriever_training import adapt_retriever

    loaded = load_data(questions, options)
    settings = {name: options[name] for name in ("base", "epochs", "rate")}
    split = split_questions(loaded.questions, _HELD_OUT)
    with data_collection(loaded, collection, options) as (handle, _), resumable(out) as progress:
        report = adapt_retriever(handle, split, out, **settings, progress=progress)
    if as_json:
        print_json({**asdict(report), "better": report.better, "out": out})
        return
    counts, figures, first = report.questions, report.numbers, report.differences[0]
    loss = figures["loss"]
    print_text(
        f"trained on {counts['learn']} questions ({report.lessons} passages), chosen on {counts['choose']}, "
        f"tested on {counts['test']}"
    )
    print_text(
        f"loss {loss['first']:.3f} → {loss['last_5']:.3f} in {figures['steps']} steps, {figures['seconds']:.0f} s; "
        f"epoch {figures['kept_epoch']} is kept\n"
    )
    rows = []
    for prefix, differences in (("", report.differences), ("dense, ", report.dense[:1])):
        for row in differences:
            interval = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            rows.append((prefix + row.measure, f"{row.a:.3f}", f"{row.b:.3f}", interval, f"{row.p:.4f}"))
    print_table(["", ">before", ">after", "difference, 95 % interval", ">p"], rows)
    if report.better:
        print_text("\nThe result is better, beyond noise. To adopt it:")
    elif first.noise:
        print_text(
            f"\nBy {first.measure}, the change is within noise: there is no reason to adopt it. To do so anyway:"
        )
    else:
        print_text(f"\nThe result is worse by {first.measure}. Do not adopt it. To do so anyway:")
    print_text(f"    ragfm reembed --embedder {shlex.quote(str(Path(out).absolute()))}")
