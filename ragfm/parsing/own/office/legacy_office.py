"""DOC and PPT, the formats of Office before 2007: LibreOffice turns them into today's, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from time import monotonic

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing import heartbeat
from ragfm.parsing.rendering import Parsed

_SECONDS = 200  # for a document, on a busy machine
_AGAIN = 81  # its exit status after it has made a profile: it wants to be started once more


def read_doc(data: bytes, name: str) -> Parsed:
    """A Word document, through DOCX. Raises SkipDocument where LibreOffice is not there, ParseError."""
    from ragfm.parsing.own.office.docx import read_docx

    return read_docx(_converted(data, name, "doc", "docx"), name)


def read_ppt(data: bytes, name: str) -> Parsed:
    """A presentation, through PPTX. Raises SkipDocument where LibreOffice is not there, ParseError."""
    from ragfm.parsing.own.office.pptx import read_pptx

    return read_pptx(_converted(data, name, "ppt", "pptx"), name)


def _converted(data: bytes, name: str, old: str, new: str) -> bytes:
    program = _program()
    if program is None:
        raise SkipDocument(
            f"{name} is a .{old} of an old Office, which LibreOffice reads, and that is not installed.",
            f"Install LibreOffice, or save the file as .{new}.",
        )
    with tempfile.TemporaryDirectory(prefix="ragfm-office-", ignore_cleanup_errors=True) as folder:
        source = Path(folder, f"document.{old}")
        source.write_bytes(data)
        profile = f"-env:UserInstallation={Path(folder, 'profile').as_uri()}"
        command = [program, profile, "-env:OSL_SOCKET_PATH=.", "--headless", "--norestore", "--convert-to", new]
        status, said = _run([*command, "--outdir", folder, str(source)], folder, name)
        result = source.with_suffix(f".{new}")
        if status or not result.is_file():
            raise ParseError(f"{name} can't be read by LibreOffice: {said or f'it ends with status {status}'}.")
        return result.read_bytes()


def _program() -> str | None:
    """LibreOffice itself: the script `soffice` starts it by a program that can't be ended with it."""
    script = shutil.which("soffice")
    if script is None:
        return None
    program = Path(script).resolve().with_name("soffice.bin")
    return str(program) if program.is_file() else script


def _run(command: list[str], folder: str, name: str) -> tuple[int, str]:
    """Exit status, and the last thing that it said."""
    end = monotonic() + _SECONDS
    said = Path(folder, "said")
    status = _AGAIN
    for _ in range(2):
        with said.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=folder) as process:  # noqa: S603
            while process.poll() is None:
                if monotonic() > end:
                    process.kill()
                    raise ParseError(f"{name} took LibreOffice over {_SECONDS} seconds.")
                try:
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    heartbeat.step()
        status = process.returncode
        if status != _AGAIN:
            break
    return status, said.read_text(errors="replace").strip().rpartition("\n")[2][:200].rstrip(".")
