"""`ragfm adapt export`."""

from __future__ import annotations

from typing import Any

import click

from ragfm.cli.options import NON_EMPTY, json_options, text_option
from ragfm.cli.output import print_json, print_note, print_text, print_written
from ragfm.models.adapters import read_record
from ragfm.models.model_lookup import find_model


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
@text_option("--out", metavar="PATH", help="Output. Default: adapter.gguf in the adapter's folder.")
@json_options
def export(
    adapter: str,
    as_json: bool,
    form: Any,
    base: str | None,
    out: str | None,
) -> None:
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
