"""Draw docs/trace.svg: the spans of a question to a real server, as a collector receives them.

    python scripts/trace_picture.py

The server, in a process of its own, answers the question twice with the bundled reader; the second one is drawn.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from support.otlp_collector import Collector, Span, collector  # noqa: E402

QUESTIONS = ("How long can I work from abroad?", "How many days of parental leave do I get?")
TRACE, CLIENT = "5e" * 16, "c1" * 8
LEFT, WIDTH, ROW, TOP = 300, 560, 26, 34
COLOURS = {"chat": "#b45309", "batch": "#d97706", "judge": "#7c3aed", "rerank": "#a78bfa", "embeddings": "#0d9488"}


def record(found: Collector) -> list[Span]:
    """The spans of the second question."""
    with tempfile.TemporaryDirectory() as folder:
        ragfm = [sys.executable, "-m", "ragfm"]
        subprocess.run([*ragfm, "demo"], cwd=folder, check=True, capture_output=True)  # noqa: S603
        command = [*ragfm, "serve", "-c", "handbook=ragfm-demo/.ragfm", "--no-auth", "--port", "0"]
        server = subprocess.Popen(  # noqa: S603
            command, cwd=folder, env=os.environ | found.environment, stderr=subprocess.PIPE, text=True
        )
        assert server.stderr
        try:
            address = next(match[0] for line in server.stderr if (match := re.search(r"http://[\d.:]+", line)))
            with httpx.Client(base_url=address, timeout=300) as client:
                while client.get("/readyz").status_code != 200:
                    time.sleep(0.2)
                for trace, question in zip(("00" * 15 + "01", TRACE), QUESTIONS, strict=True):
                    asked = {"model": "handbook", "messages": [{"role": "user", "content": question}]}
                    headers = {"traceparent": f"00-{trace}-{CLIENT}-01"}
                    client.post("/v1/chat/completions", json=asked, headers=headers).raise_for_status()
        finally:
            server.terminate()
            server.communicate()
    return found.trace(TRACE)


def draw(spans: list[Span]) -> str:
    """A waterfall: a row for each span below its parent, as long as it took."""
    rows: list[tuple[int, Span]] = []

    def add(parent: str, depth: int) -> None:
        for span in spans:
            if span.parent == parent:
                rows.append((depth, span))
                add(span.id, depth + 1)

    add(CLIENT, 0)
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    scale, height = WIDTH / (end - start), TOP + ROW * len(rows) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 90} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for part in range(5):
        x = LEFT + WIDTH * part / 4
        lines.append(f'<path d="M{x:.0f} {TOP - 8}V{height - 8}" stroke="#e5e7eb"/>')
        milliseconds = 1000 * (end - start) * part / 4
        lines.append(f'<text x="{x:.0f}" y="18" text-anchor="middle" fill="#6b7280">{milliseconds:.0f} ms</text>')
    for number, (depth, span) in enumerate(rows):
        y, x, width = TOP + ROW * number, LEFT + scale * (span.start - start), scale * (span.end - span.start)
        name, colour = escape(span.name), COLOURS.get(span.name.split()[0], "#2563eb")
        lines.append(f'<text x="{12 + 14 * depth}" y="{y + 14}" fill="#111827">{name}</text>')
        lines.append(f'<rect x="{x:.1f}" y="{y + 2}" width="{max(width, 2):.1f}" height="16" rx="3" fill="{colour}"/>')
        for _, at in span.events:
            x_event = LEFT + scale * (at - start)
            lines.append(f'<path d="M{x_event:.1f} {y + 2}v16" stroke="#fff" stroke-width="2"/>')
        took = f"{1000 * (span.end - span.start):.1f} ms"
        lines.append(f'<text x="{x + max(width, 2) + 6:.1f}" y="{y + 14}" fill="#374151">{took}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    with collector() as received:
        svg = draw(record(received))
    (ROOT / "docs" / "trace.svg").write_text(svg, encoding="utf-8")
