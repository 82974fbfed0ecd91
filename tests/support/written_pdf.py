"""Minimal PDF files from content streams."""

from __future__ import annotations


def pdf(
    *streams: str, title: str = "", trailer: str = "", page: str = "", catalog: str = "", extra: tuple[str, ...] = ()
) -> bytes:
    """A minimal PDF with one page per content stream; F1 is Helvetica, F2 the bold one, Latin-1.

    `page` goes into each page's dictionary, `catalog` into the catalog; `extra` are objects whose numbers begin at 3.
    """
    first = 3 + len(extra)
    kids = " ".join(f"{first + 2 * i} 0 R" for i in range(len(streams)))
    pages = f"<< /Type /Pages /Kids [{kids}] /Count {len(streams)} >>"
    bodies = [f"<< /Type /Catalog /Pages 2 0 R {catalog} >>", pages, *extra]
    fonts = "".join(
        f"/F{i} << /Type /Font /Subtype /Type1 /BaseFont /{name} >> "
        for i, name in ((1, "Helvetica"), (2, "Helvetica-Bold"))
    )
    for i, stream in enumerate(streams):
        bodies += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {first + 1 + 2 * i} 0 R "
            f"/Resources << /Font << {fonts} >> /XObject << /Im {len(bodies) + 3} 0 R >> >> {page} >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    bodies += [f"<< /Title ({title}) /Author (Ada) >>"]
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(bodies) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n"
    out += f"<< /Size {size} /Root 1 0 R /Info {size - 1} 0 R {trailer} >>\nstartxref\n{out.index('xref')}\n%%EOF\n"
    return out.encode("latin-1")


def lines(*texts: str, x: float = 72, y: float = 720, size: float = 10, font: int = 1, before: str = "") -> str:
    """A content stream with lines one below the other, from a position on."""
    shown = "".join(f"({text}) Tj T* " for text in texts if text)
    return f"{before} BT /F{font} {size} Tf {1.2 * size} TL {x} {y} Td {shown}ET "


def rule(x0: float, y0: float, x1: float, y1: float) -> str:
    return f"0.5 w {x0} {y0} m {x1} {y1} l S "
