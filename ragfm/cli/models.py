"""`ragfm models …`: what the models do on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ragfm.cli.options import FILLED, OK, debug_option, json_option
from ragfm.cli.output import print_json, printable
from ragfm.core.errors import RagfmError, UnsupportedError

_MODEL = click.argument("model", default="bundled", metavar="[MODEL]", type=FILLED)


@click.group()
def models() -> None:
    """List, fetch, measure and optimize the models on this machine."""


@models.command()
@click.option("--embedder", default="bundled", show_default=True, metavar="E", type=FILLED, help="The embedding model.")
@click.option("--reader", metavar="NAME", type=FILLED, help="How fast is this reader, instead? It is kept for `list`.")
@json_option
@debug_option
def bench(embedder: str, reader: str | None, as_json: bool) -> int:
    """Measure the forms of an embedding model, and remember the fastest for `ragfm ingest`; or measure a reader.

    A form must give every text of the sample a vector with a cosine of at least 0.999 to that of fp32.
    """
    if reader:
        return _bench_reader(reader, as_json)
    from ragfm.embedders import SentenceTransformerEmbedder, load_embedder
    from ragfm.embedders.backend_choice import fastest, machine

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
@json_option
@debug_option
def optimize(model: str, undo: bool, as_json: bool) -> int:
    """Find the form of a GGUF model that is fastest here, and use it from now on.

    Its perplexity on a text of the sample handbook may be 5 % higher than that of the file as it is. The form is
    written to the user's cache folder; the model's own file stays as it is.
    """
    from ragfm.generation.readers.weight_format import forget, optimized
    from ragfm.generation.readers.weight_format import optimize as measure

    path = _gguf(model)
    if undo:
        forget(path)
        if as_json:
            print_json({"model": str(path), "forms": [], "file": str(path)})
        else:
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
@json_option
@debug_option
def info(model: str, as_json: bool) -> int:
    """Say what a model is: size, quantisation, window, licence, template, memory, speed, and the form in use here."""
    described = _described(_path(model))
    if as_json:
        print_json(described)
        return OK
    for name, value in described.items():
        click.echo(printable(f"{name.replace('_', ' '):<18} {'unknown' if value is None else value}"))
    return OK


@models.command("list")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
@debug_option
def listed(folders: tuple[Path, ...], as_json: bool) -> int:
    """List the models on this machine: bundled, in the Hugging Face cache, and the GGUF files in FOLDERS.

    Speeds are those that `ragfm models bench --reader` measured.
    """
    from ragfm.models.model_card import installed

    rows = []
    for name, job, path in installed(list(folders)):
        try:
            rows.append({"name": name, "job": job, **_described(path)})
        except RagfmError as error:
            click.echo(printable(f"{name}: {error.message}"), err=True)
    if as_json:
        print_json({"models": rows})
        return OK
    click.echo(
        f"{'job':<9}{'MB':>8}  {'weights':<10}{'window':>8}  {'template':<9}{'tokens/s':>9}  {'licence':<14}name"
    )
    for row in rows:
        licence = f"{row['licence'] or 'not said'}{' !' if row['licence_restricts'] else ''}"
        shown = {key: str("-" if value is None else value) for key, value in row.items()}
        click.echo(printable(
            f"{shown['job']:<9}{shown['megabytes']:>8}  {shown['quantisation']:<10}{shown['context_tokens']:>8}  "
            f"{'yes' if row['chat_template'] else 'no':<9}{shown['tokens_per_second']:>9}  {licence:<14}{shown['name']}"
        ))  # fmt: skip
    if any(row["licence_restricts"] for row in rows):
        click.echo("! its licence may restrict what it is used for, or by whom", err=True)
    return OK


@models.command()
@click.argument("name", type=FILLED)
@click.argument("file", required=False, type=FILLED)
@json_option
@debug_option
def pull(name: str, file: str | None, as_json: bool) -> int:
    """Fetch the model NAME from the Hugging Face hub into its cache; of a repository of GGUF files, the one named FILE.

    Weights are safetensors or GGUF; nothing else that could run is fetched.
    """
    from ragfm.models.model_card import restriction
    from ragfm.models.model_lookup import find_model, pull_file

    path = pull_file(name, file) if file else find_model(name, "reader")
    described = _described(path)
    if as_json:
        print_json({"name": str(path) if file else name, **described})
        return OK
    click.echo(printable(f"{path}, {described['megabytes']} MB: use it as --reader {path if file else name}"))
    if described["licence"] is None:
        click.echo("It does not say under which licence it is.", err=True)
    elif warning := restriction(described["licence"]):
        click.echo(printable(f"{name}: {warning}."), err=True)
    return OK


def _described(path: Path) -> dict[str, Any]:
    """What a model is, and what is known of it here."""
    from ragfm.generation.readers.reader_speed import known_speed
    from ragfm.models.model_card import about

    speed = known_speed(path)
    here = {"prompt_tokens_per_second": speed and speed.prompt_tokens_per_second,
            "tokens_per_second": speed and speed.tokens_per_second}  # fmt: skip
    if not path.is_file():
        return {**about(path), **here}
    from ragfm.generation.readers.weight_format import optimized, what_was_measured

    better = optimized(path)
    form = what_was_measured(path).get("form", "as it is") if better else "as it is"
    return {**about(path), **here, "form_in_use": form, "file_in_use": str(better or path)}


def _bench_reader(name: str, as_json: bool) -> int:
    from ragfm.core.registry import plugin_and_model
    from ragfm.generation.readers import load_reader
    from ragfm.generation.readers.local_reader import LocalReader
    from ragfm.generation.readers.reader_speed import TOGETHER, measure_speed

    reader = load_reader(name)
    speed = measure_speed(
        reader, _path(plugin_and_model("readers", name)[1] or name) if isinstance(reader, LocalReader) else None
    )
    if as_json:
        print_json({"reader": name, **asdict(speed)})
        return OK
    click.echo(f"a prompt          {speed.prompt_tokens_per_second:>8.1f} tokens/s, its answer begins after "
               f"{speed.first_token_ms:.0f} ms")  # fmt: skip
    click.echo(f"an answer         {speed.tokens_per_second:>8.1f} tokens/s")
    click.echo(f"{TOGETHER} answers at once {speed.tokens_per_second_together:>8.1f} tokens/s")
    click.echo(f"memory            {speed.peak_megabytes:>8} MB")
    return OK


def _path(model: str) -> Path:
    from ragfm.models.model_lookup import find_model

    return find_model(model, "reader")


def _gguf(model: str) -> Path:
    from ragfm.models.gguf_header import check_gguf
    from ragfm.models.model_lookup import find_model

    path = find_model(model, "reader")
    if not path.is_file():
        raise UnsupportedError(f"{path} is a folder: it has one form only.", "Name a GGUF file.")
    check_gguf(path)
    return path
