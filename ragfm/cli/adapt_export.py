"""`ragfm adapt export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ragfm.cli.options import NON_EMPTY, json_options, text_option, usage_error
from ragfm.cli.output import print_json, print_note, print_text, print_written
from ragfm.cli.progress_bar import show_progress
from ragfm.models.adapters import read_record
from ragfm.models.model_lookup import find_model

_MAX_DIFFERENCES = 3  # texts that are printed


@click.command()
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
@click.option("--dtype", default="f16", type=click.Choice(["f16", "f32"]), help="Data type of a GGUF adapter.")
@text_option("--out", metavar="PATH", help="Output. Default: adapter.gguf in the adapter's folder.")
@click.option(
    "--check",
    metavar="FILE",
    type=click.Path(exists=True),
    help="Compare the outputs of transformers and llama.cpp on the prompts of these examples.",
)
@click.option("--prompts", default=50, type=click.IntRange(min=1), help="Number of prompts, with --check.")
@json_options
def export(
    adapter: str,
    as_json: bool,
    form: Any,
    base: str | None,
    dtype: Any,
    out: str | None,
    check: str | None,
    prompts: int,
) -> None:
    """Export an ADAPTER to the format of a different reader, and compare the outputs of both."""
    from ragfm.training.adapter_export import compare_readers, export_adapter
    from ragfm.training.examples import read_examples

    if check and form != "gguf":
        usage_error("--check requires --to gguf.")
    written = export_adapter(adapter, form, out=out, base=base, dtype=dtype)
    agreement = None
    if check:
        with show_progress("prompts") as progress:
            examples = read_examples(check)[:prompts]
            agreement = compare_readers(adapter, written, examples, base=base, progress=progress)
    if as_json:
        agreed = asdict(agreement) if agreement else None
        print_json({"out": str(written), "check": agreed})
        return
    if agreement:
        print_text(
            f"{agreement.equal} of {agreement.prompts} outputs are equal; token F1 between the readers "
            f"{agreement.f1:.3f}"
        )
        for by_transformers, by_llama_cpp in agreement.different[:_MAX_DIFFERENCES]:
            print_text(f"  transformers: {by_transformers!r}  llama.cpp: {by_llama_cpp!r}")
    print_written(str(written))
    if form == "gguf":
        serving = find_model(base or read_record(adapter).base["name"], "reader")
        if serving.is_dir():
            print_note("The base is a folder. To serve over a GGUF file of it, export with --base FILE.gguf.")
        else:
            print_text(f"llama-server --model {serving} --lora-scaled {written}:0")
