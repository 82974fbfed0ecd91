"""`ragfm demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ragfm.cli.options import OK, SOME_FAILED, json_options, suggest_larger_reader
from ragfm.cli.output import answer_json, print_answer, print_json, print_sync_report, print_text
from ragfm.cli.progress_bar import busy, show_progress
from ragfm.collection import Collection
from ragfm.core.registry import plugin_and_model
from ragfm.models.bundled_download import pull_bundled_reader


@click.command()
@click.argument("folder", default="ragfm-demo", type=click.Path(file_okay=False))
@json_options
def demo(folder: str, as_json: bool) -> int:
    """Ingest a sample handbook into FOLDER and answer three questions about it.

    Downloads the bundled reader if it is missing, as `ragfm models pull bundled` does. Without llama.cpp, the answers
    are quotes.

    Change a fact in FOLDER/handbook and run the command again: the answers change with it.
    """
    from ragfm.generation.readers import NO_READER, available_reader
    from ragfm.rag import Rag
    from ragfm.samples import QUESTIONS, copy_handbook

    handbook = copy_handbook(folder)
    collection = str(Path(folder) / ".ragfm")
    with Collection.open(collection) as store:
        reader = available_reader(store.settings.reader)
        if reader != NO_READER and plugin_and_model("readers", reader)[1] == "bundled":
            pull_bundled_reader()
        with show_progress("documents") as progress:
            report = store.sync(handbook, progress=progress)
        if not as_json:
            print_sync_report(report)
        rag = Rag(store, reader=reader, adapter=store.settings.adapter)
        answers = []
        for question in QUESTIONS:
            if not as_json:
                print_text("\n", (question, "bold"))
            with busy("reading"):
                answers.append(rag.ask(question))
            if not as_json:
                print_answer(answers[-1])
    if as_json:
        print_json({"ingest": asdict(report), "answers": [answer_json(answer) for answer in answers]})
    else:
        print_text(
            f"\nThe documents are in {handbook}. Ask a question of your own, or chat in a browser:\n\n"
            f"    ragfm ask -c {collection} 'How many days of leave do I get?'\n"
            f"    ragfm serve -c {collection} --no-auth"
        )
        suggest_larger_reader(rag)
    return SOME_FAILED if report.failed else OK
