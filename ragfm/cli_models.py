"""`ragfm models …`: what the models do on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ragfm.cli_options import FILLED, OK
from ragfm.errors import UnsupportedError
from ragfm.show import print_json, printable

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_DEBUG = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and what is going on.")
_MODEL = click.argument("model", default="bundled", metavar="[MODEL]", type=FILLED)
_WINDOW = 4096
"""Tokens of a request for which the memory is worked out: a reader's default."""


@click.group()
def models() -> None:
    """See what the models do on this machine."""


@models.command()
@click.option("--embedder", default="bundled", show_default=True, metavar="E", type=FILLED, help="The embedding model.")
@_JSON
@_DEBUG
def bench(embedder: str, as_json: bool) -> int:
    """Measure the forms of an embedding model, and remember the fastest for `ragfm ingest`.

    A form must give every text of the sample a vector with a cosine of at least 0.999 to that of fp32.
    """
    from ragfm.embed import SentenceTransformerEmbedder, load_embedder
    from ragfm.embed.choice import fastest, machine

    model = load_embedder(embedder)
    if not isinstance(model, SentenceTransformerEmbedder):
        raise UnsupportedError(f"The embedder {embedder} has one form only.", "There is nothing to choose.")
    results = model.measure()
    chosen = fastest(results)
    if as_json:
        rows = [{**asdict(result), "chosen": result.form == chosen} for result in results]
        print_json({"embedder": embedder, "machine": machine(), "forms": rows})
        return OK
    click.echo(f"{'form':<12} {'texts/s':>8} {'tokens/s':>9} {'lowest cosine':>14}")
    for result in results:
        if result.error:
            click.echo(printable(f"{result.form:<12} {result.error}"))
            continue
        mark = "  chosen" if result.form == chosen else ""
        click.echo(
            f"{result.form:<12} {result.texts_per_second:>8.1f} {result.tokens_per_second:>9.0f} "
            f"{result.lowest_cosine:>14.6f}{mark}"
        )
    return OK


@models.command()
@_MODEL
@click.option("--undo", is_flag=True, help="Use the model as it is again, and delete what was made of it.")
@_JSON
@_DEBUG
def optimize(model: str, undo: bool, as_json: bool) -> int:
    """Find the form of a GGUF model that is fastest here, and use it from now on.

    Its perplexity on a text of the sample handbook may be 5 % higher than that of the file as it is. The form is
    written to the user's cache folder; the model's own file stays as it is.
    """
    from ragfm.readers.optimize import forget, optimized
    from ragfm.readers.optimize import optimize as measure

    path = _gguf(model)
    if undo:
        forget(path)
        click.echo(printable(f"{path} is used as it is."))
        return OK
    forms, best = measure(path)
    if as_json:
        rows = [{**asdict(form), "chosen": form == best} for form in forms]
        print_json({"model": str(path), "forms": rows, "file": str(optimized(path) or path)})
        return OK
    click.echo(f"{'form':<10} {'MB':>8} {'prompt/s':>9} {'tokens/s':>9} {'perplexity':>11} {'agreement':>10}")
    for form in forms:
        click.echo(
            f"{form.name:<10} {form.megabytes:>8.1f} {form.prompt_tokens_per_second:>9.0f} "
            f"{form.tokens_per_second:>9.1f} {form.perplexity:>11.2f} {form.agreement:>10.1%}"
            f"{'  chosen' if form == best else ''}"
        )
    return OK


@models.command()
@_MODEL
@_JSON
@_DEBUG
def info(model: str, as_json: bool) -> int:
    """Say what a GGUF model is: size, quantisation, window, licence, template, memory, and the form in use here."""
    about = _about(_gguf(model))
    if as_json:
        print_json(about)
        return OK
    for name, value in about.items():
        click.echo(printable(f"{name.replace('_', ' '):<18} {'unknown' if value is None else value}"))
    return OK


def _about(path: Path) -> dict[str, Any]:
    from gguf import GGMLQuantizationType

    from ragfm.gguf_file import read_header
    from ragfm.readers.optimize import optimized, what_was_measured

    header = read_header(path)
    says = header.metadata
    architecture = says.get("general.architecture")

    def number(name: str) -> int:
        value = says.get(f"{architecture}.{name}")
        return value if isinstance(value, int) else 0

    heads = number("attention.head_count")
    size = number("attention.key_length") or (number("embedding_length") // heads if heads else 0)
    cells = 2 * number("block_count") * (number("attention.head_count_kv") or heads) * size
    better = optimized(path)
    return {
        "model": says.get("general.name"),
        "file": str(path),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "architecture": architecture,
        "quantisation": GGMLQuantizationType(max(header.types, key=lambda kind: header.types[kind])).name,
        "context_tokens": number("context_length") or None,
        "licence": says.get("general.license"),
        "chat_template": "tokenizer.chat_template" in says,
        "megabytes_per_slot": round(2 * cells * min(_WINDOW, number("context_length") or _WINDOW) / 1e6, 1),
        "form_in_use": (what_was_measured(path) or {}).get("form", "as it is") if better else "as it is",
        "file_in_use": str(better or path),
    }


def _gguf(model: str) -> Path:
    from ragfm.gguf_file import check_gguf
    from ragfm.models import find_model

    path = find_model(model, "reader")
    if not path.is_file():
        raise UnsupportedError(f"{path} is a folder: it has one form only.", "Name a GGUF file.")
    check_gguf(path)
    return path
