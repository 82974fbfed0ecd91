"""The command line: `run` has the commands of every day and their end, each other module those of its name."""

from ragfm.cli.run import main, ragfm

__all__ = ["main", "ragfm"]
