"""`ragfm eval …`: evaluation of retrieval and answers."""

from __future__ import annotations

import click

from ragfm.cli.eval_answers import answers
from ragfm.cli.eval_compare import compare
from ragfm.cli.eval_retrieval import retrieval
from ragfm.cli.help import CommandGroup


@click.group("eval", cls=CommandGroup)
def evaluation() -> None:
    """Measure the quality of retrieval and answers, and compare runs."""


for command in (retrieval, answers, compare):
    evaluation.add_command(command)
