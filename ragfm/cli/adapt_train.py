"""`ragfm adapt train`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.evaluation_data import print_how_to_continue
from ragfm.cli.options import (
    NON_EMPTY,
    POSITIVE,
    json_options,
    out_folder_option,
    text_option,
)
from ragfm.cli.output import print_json, print_note, print_text, print_written
from ragfm.cli.progress_bar import format_seconds, show_progress
from ragfm.models.adapters import METHODS

if TYPE_CHECKING:
    from ragfm.training import TrainingEstimate


@click.command()
@click.argument("examples", type=NON_EMPTY)
@text_option(
    "--base",
    default="bundled",
    metavar="NAME",
    help="Base model: a folder of safetensors, or the GGUF file that will be served.",
)
@click.option(
    "--method",
    default="lora",
    type=click.Choice(METHODS),
    help="Fine-tuning method.",
)
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
    examples: str,
    as_json: bool,
    *,
    dry_run: bool,
    out: str,
    base: str,
    licence: str | None,
    **options: Any,
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
