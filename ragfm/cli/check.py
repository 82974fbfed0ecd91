"""`ragfm check`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ragfm.cli.options import OK, collection_options, k_option, usage_error
from ragfm.cli.output import one_line, print_json, print_text
from ragfm.cli.progress_bar import busy
from ragfm.collection import Collection
from ragfm.core.errors import DataError

INPUT_FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.option("--answer", "answer_file", type=INPUT_FILE, required=True, help="Text file with the answer.")
@click.option(
    "--passages",
    "passages_file",
    type=INPUT_FILE,
    help="JSON array or JSON lines of texts or objects with `text`, to check it against instead of a collection.",
)
@click.option("--question", default="", help="The question that was answered.")
@k_option
@collection_options
@click.pass_context
def check(
    context: click.Context,
    collection: str,
    as_json: bool,
    answer_file: str,
    passages_file: str | None,
    question: str,
    k: int | None,
) -> int:
    """Check the answer of any system, sentence by sentence, against passages or a collection."""
    from ragfm.integrations.answer_check import check as check_answer

    given = context.get_parameter_source("collection") is click.core.ParameterSource.COMMANDLINE
    if passages_file is not None and (given or k is not None):
        usage_error("--passages cannot be combined with --collection or -k.")
    answer = _read(answer_file)
    if passages_file is not None:
        text = _read(passages_file)
        is_array = text.lstrip().startswith("[")
        values: list[Any] = []
        for number, part in enumerate([text] if is_array else filter(str.strip, text.split("\n")), 1):
            try:
                values.append(json.loads(part))
            except ValueError as error:
                raise DataError(
                    f"'{passages_file}' cannot be read: value {number} is not JSON: {error}.",
                    "Specify a JSON array, or a JSON value in each line.",
                ) from error
        sentences = check_answer(answer, values[0] if is_array else values, question=question)
    else:
        with Collection.open(collection) as store, busy("searching and reading"):
            sentences = check_answer(answer, store, question=question, k=k)
    counts = dict.fromkeys(("supported", "contradicted", "not_found"), 0) | Counter(
        sentence.status for sentence in sentences
    )
    if as_json:
        print_json({"sentences": [asdict(sentence) for sentence in sentences], **counts})
        return OK
    for sentence in sentences:
        print_text((f"{sentence.status.replace('_', ' ')}: ", "bold"), " ".join(sentence.text.split()))
        for citation in sentence.citations:
            doubt = f" ({citation.doubt})" if citation.doubt else ""
            print_text(f"  [{citation.n}] {one_line(citation.location)}: ", (citation.displayed, "dim"), doubt)
        if against := sentence.contradiction:
            print_text(f"  But [{against.n}] {one_line(against.location)}: ", (against.displayed, "dim"))
    print_text(", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items()))
    return OK


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' cannot be read: {error}.", "Check that it is encoded as UTF-8.") from error
