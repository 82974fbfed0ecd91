"""`ragfm eval compare`."""

from __future__ import annotations

from dataclasses import asdict
from textwrap import shorten

import click

from ragfm.cli.options import json_options
from ragfm.cli.output import print_json, print_table, print_text
from ragfm.core.text import counted

_MAX_VALUE = 80  # characters of a setting's value


@click.command()
@click.argument("a", type=click.Path(exists=True, dir_okay=False))
@click.argument("b", type=click.Path(exists=True, dir_okay=False))
@json_options
def compare(a: str, b: str, as_json: bool) -> None:
    """Compare runs A and B, which were written with --out, question by question."""
    from ragfm.evaluation import compare_runs

    compared = compare_runs(a, b)
    if as_json:
        print_json({**asdict(compared), "settings": compared.settings})
        return
    only = f"; {compared.only_a} only in A, {compared.only_b} only in B" if compared.only_a or compared.only_b else ""
    print_text(f"{counted(question=compared.questions)}{only}")
    for key, values in compared.settings.items():
        in_a, in_b = (shorten(str(value), _MAX_VALUE, placeholder="…") for value in values)
        print_text(f"{key}: {in_a} in A, {in_b} in B")
    rows = []
    for row in compared.differences:
        verdict = "within noise" if row.noise else "B is better" if row.difference > 0 else "A is better"
        rows.append(
            (
                row.measure,
                f"{row.a:.3f}",
                f"{row.b:.3f}",
                f"{row.difference:+.3f}",
                f"[{row.low:+.3f}, {row.high:+.3f}]",
                f"{row.p:.4f}",
                f"{row.wins} / {row.losses} / {row.ties}",
                verdict,
            )
        )
    print_text("")
    print_table(["", ">A", ">B", ">B - A", "95 % interval", ">p", "better / worse / same in B", ""], rows)
    if compared.changed:
        print_text(f"\nLargest changes of {compared.differences[0].measure}:")
    for change in compared.changed:
        print_text(f"  {change.a:.2f} → {change.b:.2f}  {' '.join(change.question.split())}  ({change.id})")
