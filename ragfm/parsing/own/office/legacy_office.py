"""DOC and PPT, the Office formats before 2007: LibreOffice converts them to DOCX and PPTX, if it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from time import monotonic

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing import heartbeat
from ragfm.parsing.own.office.docx import read_docx
from ragfm.parsing.own.office.pptx import read_pptx
from ragfm.parsing.rendering import ParsedText

_MAX_SECONDS = 200  # per document, on a busy machine
_RESTART_STATUS = 81  # LibreOffice's exit status after it created a profile: it must be started once more


def read_doc(data: bytes, name: str) -> ParsedText:
    """Parse a Word document, through DOCX. Raises SkipDocument without LibreOffice, ParseError."""
    return read_docx(convert(data, name, "doc", "docx"), name)


def read_ppt(data: bytes, name: str) -> ParsedText:
    """Parse a presentation, through PPTX. Raises SkipDocument without LibreOffice, ParseError."""
    return read_pptx(convert(data, name, "ppt", "pptx"), name)


def convert(data: bytes, name: str, source_format: str, target_format: str) -> bytes:
    """Return the document in another format. Raises SkipDocument without LibreOffice, ParseError."""
    script = shutil.which("soffice")
    if script is None:
        raise SkipDocument(
            f"{name} has an old Office format (.{source_format}), which needs LibreOffice.",
            f"Install LibreOffice, or save the file as .{target_format}.",
        )
    # The script `soffice` starts a child process that outlives it, so the program itself is started.
    binary = Path(script).resolve().with_name("soffice.bin")
    program = str(binary) if binary.is_file() else script
    with tempfile.TemporaryDirectory(prefix="ragfm-office-", ignore_cleanup_errors=True) as folder:
        source = Path(folder, f"document.{source_format}")
        source.write_bytes(data)
        profile = f"-env:UserInstallation={Path(folder, 'profile').as_uri()}"
        command = [program, profile, "-env:OSL_SOCKET_PATH=.", "--headless", "--norestore"]
        command += ["--convert-to", target_format, "--outdir", folder, str(source)]
        deadline, output, status = monotonic() + _MAX_SECONDS, Path(folder, "output"), _RESTART_STATUS
        for _ in range(2):
            with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, cwd=folder) as process:  # noqa: S603
                while process.poll() is None:
                    if monotonic() > deadline:
                        process.kill()
                        raise ParseError(f"LibreOffice did not convert {name} within {_MAX_SECONDS} seconds.")
                    try:
                        process.wait(1)
                    except subprocess.TimeoutExpired:
                        heartbeat.beat()
            status = process.returncode
            if status != _RESTART_STATUS:
                break
        target = source.with_suffix(f".{target_format}")
        if status or not target.is_file():
            message = output.read_text(errors="replace").strip().rpartition("\n")[2][:200].rstrip(".")
            reason = message or f"it ends with status {status}"
            raise ParseError(f"{name} cannot be read by LibreOffice: {reason}.")
        return target.read_bytes()
