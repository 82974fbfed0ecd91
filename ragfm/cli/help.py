"""Help pages: commands in sections, each with its whole description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

_UNLIMITED = 1000  # characters of a description


class CommandGroup(click.Group):
    """A group whose help lists commands by section, in the order given, and does not cut their descriptions."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections or {}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each entry of `sections`, and one for the other commands."""
        listed = {name for names in self.sections.values() for name in names}
        others = [name for name in self.commands if name not in listed]
        width = max((len(name) for name in self.commands), default=0)
        for title, names in {**self.sections, "Commands": others}.items():
            if names:
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(_UNLIMITED)) for name in names]
                with formatter.section(title):
                    formatter.write_dl(rows)
