"""`ragfm adapt …`: fine-tuning of the reader and the embedder."""

from __future__ import annotations

import click

from ragfm.cli.adapt_data import data
from ragfm.cli.adapt_export import export
from ragfm.cli.adapt_retriever import retriever
from ragfm.cli.adapt_train import train
from ragfm.cli.help import CommandGroup


@click.group(cls=CommandGroup)
def adapt() -> None:
    """Fine-tune the reader or the embedder on your documents."""


for command in (data, train, export, retriever):
    adapt.add_command(command)
