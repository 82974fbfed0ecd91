"""Write the tables of docs/benchmarks.md, below their markers: each is rendered by a function of its benchmark.

python benchmarks/tables.py [--check]
python benchmarks/tables.py --readme

`<!-- table: bench_peers.table -->` is followed by the table that `table` in bench_peers.py renders from `results/`.
With --check, the page is only compared, and a difference is an error. --readme writes the table of benchmarks/README.md
from catalog.toml, the results and the history of the code instead.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import catalog
from rendering import Results

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
README = Path(__file__).parent / "README.md"
_MARKED = re.compile(r"(<!-- table: (\w+)\.(\w+) -->\n)(?:\|.*\n)*")


def render(page: str, results: Results) -> str:
    """The page with all tables rendered from the results."""

    def replacement(match: re.Match[str]) -> str:
        marker, module, function = match.groups()
        return f"{marker}{getattr(importlib.import_module(module), function)(results)}\n"

    return _MARKED.sub(replacement, page)


def main() -> None:
    if "--readme" in sys.argv[1:]:
        above, _, _ = README.read_text(encoding="utf-8").partition("\n## ")
        README.write_text(f"{above}\n{catalog.readme()}\n", encoding="utf-8")
        return
    old = PAGE.read_text(encoding="utf-8")
    new = render(old, Results())
    if "--check" in sys.argv[1:]:
        sys.exit("docs/benchmarks.md differs from the results. Run python benchmarks/tables.py." if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
