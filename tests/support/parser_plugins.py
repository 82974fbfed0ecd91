"""Helpers for tests of parsers of other libraries, which need not be installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ragfm.core.errors import MissingExtraError
from ragfm.core.registry import load_plugin
from ragfm.core.types import Blob, Document
from ragfm.parsing import Parser, ParserChoice, parse

PLUGINS = ("docling", "unstructured")

# urllib3 finds out when it is imported whether the machine has IPv6, by binding a socket to ::1.
_WATCH = """
import sys
events = []
def record(event, arguments):
    if event.startswith(("socket.", "urllib", "http.", "subprocess.Popen", "os.system")):
        probe = event == "socket.bind" and arguments[1][0] == "::1"
        if event != "socket.__new__" and not probe and arguments[0] != "uname":  # which `platform` starts
            events.append((event, str(arguments)))
sys.addaudithook(record)
"""


def plugin(name: str) -> Parser:
    """The parser, or a skip with the reason."""
    try:
        parser: Parser = load_plugin("parsers", name)()
    except MissingExtraError as error:
        pytest.skip(str(error))
    return parser


def read(name: str, data: bytes | str, uri: str) -> Document:
    """Parse a document with this parser."""
    suffix = uri.rpartition(".")[2]
    return parse(Blob(data.encode() if isinstance(data, str) else data), uri, ParserChoice({suffix: name}))


def watched(code: str) -> list[tuple[str, str]]:
    """Audit events of network connections and child processes in a new interpreter that executes the code."""
    code = f"{_WATCH}\n{code}\nprint('events:', repr(events))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    events: list[tuple[str, str]] = eval(done.stdout.rpartition("events:")[2])
    return [event for event in events if "ldconfig" not in event[1]]  # by it, torch for GPUs looks for libraries
