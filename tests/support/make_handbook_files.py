"""Write the two binary files of the sample handbook, whose text is in this module.

Usage: python tests/support/make_handbook_files.py [FOLDER]
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

HANDBOOK = Path(__file__).parents[2] / "ragfm" / "samples" / "handbook"

# One string per page: the first line is the heading of the page, blank lines separate paragraphs.
OBSERVERS_GUIDE = (
    """The observer's guide

This guide is for those who take the readings at Brannay Weather Station. It was written by Tomasz Wieczorek, head of
observations, and holds from 1 February 2026.

An observation is taken every three hours, day and night, beginning at 00:00 UTC. All times in this guide are UTC; the
clock in the observers' room is never put forward or back. Start the round ten minutes before the hour, always in the
same order: barometer, screen, rain gauge, sky, sea.

A reading that was missed stays missed. Leave the field empty and write the reason beside it. An invented number does
more harm than a gap, and it is the one thing for which an observer has ever been dismissed.

Read the barometer to a tenth of a hectopascal. The station's barometer stands 23 metres above the sea, and the computer
reduces the pressure to sea level by itself.""",
    """The weather balloon

The weather balloon is launched at 11:15 UTC every day. Two people are needed in the balloon shed: the balloon
technician, Zofia Kral, and the observer on the early shift. No balloon is launched when the wind at the ground is above
14 metres per second.

The balloon is filled with hydrogen until it lifts 1,100 grams. Filling takes about 25 minutes. Wear the antistatic coat
and leave telephones, watches and keys in the box at the door. The doors on both sides stay open while the gas flows.

The radiosonde weighs 84 grams and sends temperature, humidity and position once a second. A flight lasts about two
hours and ends, on average, at a height of 31 kilometres. When a sonde stops sending below 10 kilometres, a second
balloon is launched within the hour.

Sondes that come down on the island or drift ashore are brought to the workshop. The finder gets a mug.""",
    """Rain, snow and sun

The rain gauge is emptied at 06:00 and at 18:00 UTC. Pour the water slowly into the measuring glass and read the lowest
point of the curve, at eye level. Less than 0.05 millimetres is written down as a trace.

The depth of snow is measured at three stakes beside the screen, and the mean is written down in whole centimetres. If
the three differ by more than 10 centimetres, write down all three.

The glass sphere of the sunshine recorder is wiped every morning with a soft cloth. The paper strip is changed after
sunset. Short strips are for winter, long strips for summer, straight ones for spring and autumn.

The wettest day since the station was founded was 9 October 1967, when 148 millimetres of rain fell. The lowest
temperature was minus 19.3 degrees, on 2 February 1956.""",
    """The sea and the sky

From the tower, write down the height of the waves, the direction of the swell and how far you can see. The lighthouse
on Skarv Rock is 12 kilometres away; if you see its light, the visibility is at least that.

Cloud cover is given in eighths. Give the height of the lowest cloud in metres; the ceilometer helps, but it takes sea
fog for a cloud, and you don't.

The water temperature is taken every Wednesday at 12:00 UTC from the end of the jetty, at a depth of one metre. Wear a
life jacket and tell the duty forecaster on channel 6 before you go and when you are back.

Thunder, hail, waterspouts and northern lights are entered with the minute at which they began and ended. Whoever sees a
waterspout first rings the bell in the tower.""",
)


def pdf(pages: Sequence[str]) -> bytes:
    """A PDF 1.4 file with one page per text, in Helvetica; the same text gives the same bytes."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, page in enumerate(pages):
        content = _page_content(page).encode("cp1252")
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (5 + 2 * i)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    return out + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, out.rindex(b"xref\n0 "))


def _page_content(page: str) -> str:
    """Text operators: the heading in 18 points, the paragraphs in 11, wrapped, from the top margin down."""
    heading, *paragraphs = page.split("\n\n")
    lines = [f"BT /F1 18 Tf 64 770 Td ({_escaped(heading)}) Tj /F1 11 Tf 15 TL 0 -15 Td"]
    for paragraph in paragraphs:
        lines.append("T*")
        lines += [f"T* ({_escaped(line)}) Tj" for line in textwrap.wrap(paragraph, 84)]
    return "\n".join([*lines, "ET"])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def write_docx(path: Path) -> None:
    """Visitors and volunteers: headings, paragraphs, a list and a table."""
    import docx

    document = docx.Document()
    document.core_properties.title = "Visitors and volunteers"
    document.core_properties.author = "Callum Reid"
    document.core_properties.created = document.core_properties.modified = datetime(2026, 1, 12, tzinfo=UTC)
    document.add_heading("Visitors and volunteers", level=1)
    document.add_paragraph(
        "Visitors are welcome at Brannay Weather Station. They write their name into the visitors' book at the station "
        "office, get a yellow badge and are never alone on the mast field. Dogs stay on a lead."
    )
    document.add_heading("Guided tours", level=2)
    document.add_paragraph(
        "There is a guided tour every Wednesday at 14:15, from May to September. The guided tour takes 75 minutes and "
        "begins at the flagpole. A group has at most 16 people. School classes come in June and are booked with Callum "
        "Reid, the station secretary."
    )
    document.add_paragraph("A tour goes to four places:")
    for place in (
        "the screen and the rain gauges",
        "the tower with the old log books",
        "the balloon shed",
        "the jetty",
    ):
        document.add_paragraph(place, style="List Bullet")
    document.add_heading("What it costs", level=2)
    table = document.add_table(rows=0, cols=2, style="Table Grid")
    for row in (
        ("Ticket", "Price"),
        ("Adult", "60 crowns"),
        ("Child under 12", "free"),
        ("School class", "300 crowns"),
        ("Islander", "free"),
    ):
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    document.add_heading("Volunteers", level=2)
    document.add_paragraph(
        "Volunteers stay for two to ten weeks, get a bed in the staff house and lunch on weekdays, and help with the "
        "log books or in the workshop. A volunteer must be at least 18 years old. Write to Astrid Moen, who looks "
        "after the volunteers, before the end of March. Every summer there are five places."
    )
    document.add_paragraph(
        "The old log books are being copied into the database. So far the years from 1911 to 1958 are done, and each "
        "page is read by two people who do not see each other's numbers."
    )
    document.add_heading("Journalists and film crews", level=2)
    document.add_paragraph(
        "Questions from newspapers and television go to the director, Ingrid Halvorsen. Drones may not be flown within "
        "800 metres of the mast, since they disturb the balloon and the birds."
    )
    document.save(str(path))


def main(folder: Path = HANDBOOK) -> None:
    """Write both files into a folder."""
    (folder / "observers-guide.pdf").write_bytes(pdf(OBSERVERS_GUIDE))
    write_docx(folder / "visitors.docx")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
