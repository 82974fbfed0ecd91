"""DOC and PPT, the formats of Office before 2007: LibreOffice turns them into today's, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ragfm.errors import ParseError, SkipDocument
from ragfm.parse.rendering import Parsed

_SECONDS = 120


def read_doc(data: bytes, name: str) -> Parsed:
    """A Word document, through DOCX. Raises SkipDocument where LibreOffice is not there, ParseError."""
    from ragfm.parse.docx import read_docx

    return read_docx(_converted(data, name, "doc", "docx"), name)


def read_ppt(data: bytes, name: str) -> Parsed:
    """A presentation, through PPTX. Raises SkipDocument where LibreOffice is not there, ParseError."""
    from ragfm.parse.pptx import read_pptx

    return read_pptx(_converted(data, name, "ppt", "pptx"), name)


def _converted(data: bytes, name: str, old: str, new: str) -> bytes:
    program = shutil.which("soffice")
    if program is None:
        raise SkipDocument(
            f"{name} is a .{old} of an old Office, which LibreOffice reads, and that is not installed.",
            f"Install LibreOffice, or save the file as .{new}.",
        )
    with tempfile.TemporaryDirectory(prefix="ragfm-office-") as folder:
        source = Path(folder, f"document.{old}")
        source.write_bytes(data)
        profile = f"-env:UserInstallation={Path(folder, 'profile').as_uri()}"
        command = [program, profile, "--headless", "--norestore", "--convert-to", new, "--outdir", folder, str(source)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, cwd=folder)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise ParseError(f"{name} took LibreOffice over {_SECONDS} seconds.") from error
        result = source.with_suffix(f".{new}")
        if done.returncode or not result.is_file():
            said = done.stderr.decode("utf-8", "replace").strip().split("\n")[0]
            raise ParseError(f"{name} can't be read by LibreOffice: {said or 'it says nothing'}")
        return result.read_bytes()
