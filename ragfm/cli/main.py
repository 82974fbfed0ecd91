"""The entry point: the command group, and how a command ends.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 some documents failed, 130 interrupted. With `--json`, standard
output is one JSON object; progress, warnings and notes go to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from pathlib import Path

import click

from ragfm import __version__
from ragfm.cli.adapt import adapt
from ragfm.cli.ask import ask
from ragfm.cli.chat import chat
from ragfm.cli.check import check
from ragfm.cli.collection_commands import documents, remove, sources, status
from ragfm.cli.compare import compare
from ragfm.cli.demo import demo
from ragfm.cli.doctor import doctor
from ragfm.cli.evaluation_commands import evaluation
from ragfm.cli.help import CommandGroup
from ragfm.cli.ingest import ingest
from ragfm.cli.log import log
from ragfm.cli.maintenance_commands import backup, compact, copy, export, reembed, restore, verify
from ragfm.cli.models import models
from ragfm.cli.options import FAILED, INTERRUPTED, OK, USAGE
from ragfm.cli.output import print_error, print_json, print_note
from ragfm.cli.plugins import plugins
from ragfm.cli.search import search
from ragfm.cli.server_commands import keys, mcp, serve
from ragfm.cli.tune import tune
from ragfm.cli.watch import watch
from ragfm.core.durable_files import storage_failure
from ragfm.core.errors import CollectionError, FilterError, RagfmError
from ragfm.core.tracing import start_tracing

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Use": (demo, ingest, search, ask, check, chat, log),
    "Collection": (
        status,
        sources,
        documents,
        remove,
        export,
        verify,
        backup,
        restore,
        copy,
        compact,
        reembed,
        watch,
    ),
    "Serve": (serve, keys, mcp, doctor),
    "Evaluate": (evaluation, compare, tune),
    "Adapt": (adapt, models, plugins),
}
_PASSWORD = re.compile(rb"://[^:/@\0]*:([^@\0]+)@|[?&]\w*password=([^&\0]+)")  # in an address
_QUIET_LIBRARIES = ("httpx", "httpcore", "urllib3", "filelock", "sentence_transformers", "transformers")


@click.group(
    cls=CommandGroup,
    sections={title: [str(command.name) for command in commands] for title, commands in SECTIONS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="ragfm")
@click.pass_context
def ragfm(context: click.Context) -> None:
    """Cited answers over your own documents, with foundation models that you run yourself."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    level = logging.DEBUG if "--debug" in sys.argv else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[_NoteHandler()])
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    start_tracing()


for commands in SECTIONS.values():
    for command in commands:
        ragfm.add_command(command)


def main() -> None:
    """Run a command and exit with its code; errors are printed without a traceback unless `--debug` is given."""
    _hide_passwords()
    try:
        for argument in sys.argv[1:]:  # neither a catalog nor JSON can store bytes that are not UTF-8
            try:
                argument.encode()
            except UnicodeEncodeError:
                shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
                raise click.UsageError(f"The argument {shown} is not UTF-8.") from None
        code = ragfm.main(standalone_mode=False) or OK
        if sys.stdout:
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.UsageError as error:
        help_command = f"{error.ctx.command_path} --help" if error.ctx else "ragfm --help"
        code = _fail(USAGE, error, error.format_message(), f"See `{help_command}`.")
    except FilterError as error:
        code = _fail(USAGE, error, error.message, error.hint)
    except RagfmError as error:
        code = _fail(FAILED, error, error.message, error.hint)
    except (KeyboardInterrupt, click.Abort):
        hint = ""
        if {"ingest", "reembed"} & set(sys.argv):
            hint = "Committed documents are kept; run the same command again to continue."
        code = _fail(INTERRUPTED, KeyboardInterrupt(), "Interrupted.", hint)
    except BrokenPipeError:
        code = FAILED
    except OSError as error:
        what = f"Access to '{error.filename}'" if error.filename else "Writing the output"
        message, hint = (
            f"{what} failed: {error.strerror or error}.",
            "Check the path, its permissions and the free space.",
        )
        error_type = storage_failure(Path.cwd(), error)[0] if error.errno else CollectionError
        failure = error if error_type is CollectionError else error_type(message).with_traceback(error.__traceback__)
        code = _fail(FAILED, failure, message, hint)
    except Exception as error:  # users see no traceback
        hint = "This is a bug in ragfm. Run the command with --debug for the traceback."
        code = _fail(FAILED, error, f"{type(error).__name__}: {error}", hint)
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:  # nothing reads the output: without this, Python would try to write it at exit, and fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _hide_passwords() -> None:
    """Overwrite the passwords in this process's command line, which every user of the machine can read. Linux only."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, see proc_pid_stat(5)
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            for match in _PASSWORD.finditer(memory.read(end - start)):
                first, last = match.span(match.lastindex or 0)
                memory.seek(start + first)
                memory.write(b"*" * (last - first))


def _fail(code: int, error: BaseException, message: str, hint: str) -> int:
    if "--debug" in sys.argv:
        logging.getLogger(__name__).error("%s", type(error).__name__, exc_info=error)
    try:
        if "--json" in sys.argv:
            print_json({"error": {"type": type(error).__name__, "message": message, "hint": hint}})
            sys.stdout.flush()
        else:
            print_error(message, hint)
    except OSError:  # standard output failed
        print_error(message, hint)
    return code


class _NoteHandler(logging.Handler):
    """Prints `Warning: MESSAGE` to the current standard error, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message after its level, without control characters."""
        with contextlib.suppress(OSError):
            print_note(f"{record.levelname.capitalize()}: {self.format(record)}")
