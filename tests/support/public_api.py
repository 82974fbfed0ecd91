"""The names that users rely on, as a list. `python tests/support/public_api.py` writes it to tests/public_api.json."""

from __future__ import annotations

import inspect
import json
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from contextlib import chdir, closing
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import click

import ragfm
from ragfm.cli import options
from ragfm.cli.main import ragfm as program
from ragfm.cli.output import answer_json, extraction_json
from ragfm.generation.structured_output import Extraction
from ragfm.server.app import create_app
from ragfm.server.served_models import ServedModels

sys.path.insert(0, str(Path(__file__).parents[1]))  # for a start as a script
from support.judges import use_judge
from support.shell import InProcessShell
from support.small_documents import write_documents

LISTED = Path(__file__).parents[1] / "public_api.json"
DEPRECATED = " (deprecated)"
ANY_KEY = ("metadata", "options", "scores", "tags")
"""JSON objects whose keys are data."""
COMMANDS = (
    *(
        "ingest docs",
        "search leave",
        "status",
        "sources",
        "sources --check",
        "documents",
        "documents docs/leave.md",
        "export out.jsonl",
    ),
    *("check --answer docs/hours.txt", "backup out.tar"),
    *("verify --repair", "compact", "restore out.tar -c restored", "remove docs/leave.md"),
)


def public_api() -> dict[str, list[str]]:
    """Names and commands with their parameters, exit codes, settings, and the keys of `--json` and of the server."""
    with closing(ServedModels([])) as served:
        http = create_app(served, keys=None).openapi()
    settings = ragfm.Settings.model_json_schema()
    return {
        "python": sorted(line for name in ragfm.__all__ for line in _names(name, getattr(ragfm, name))),
        "commands": sorted(_commands(program, "ragfm")),
        "exit codes": [
            f"{name} = {value}" for name, value in vars(options).items() if name.isupper() and type(value) is int
        ],
        "settings": sorted(_settings(settings, settings["$defs"], "")),
        "json": sorted(set(_json())),
        "http": sorted(_http(http)),
    }


def _names(name: str, value: Any) -> Iterator[str]:
    """A function with its parameters; a class with those of its constructor, its fields and its methods."""
    if not inspect.isclass(value):
        yield f"{name}{_parameters(value)}{_mark(value)}" if callable(value) else name
        return
    own = [kind for kind in value.__mro__ if kind.__module__.startswith("ragfm")]
    if value is not ragfm.Settings and not getattr(value, "_is_protocol", False):
        yield f"{name}{_parameters(value)}{_mark(value)}"
    for member in {key for kind in own for key in (*vars(kind), *inspect.get_annotations(kind))}:
        if not member.startswith("_") and value is not ragfm.Settings:
            function = getattr(value, member, None)
            shown = _parameters(function) if inspect.isroutine(function) else ""
            yield f"{name}.{member}{shown}{_mark(function.fget if isinstance(function, property) else function)}"


def _mark(value: Any) -> str:
    """What ends the line of a deprecated name: typing_extensions and click mark those."""
    return DEPRECATED if getattr(value, "__deprecated__", None) or getattr(value, "deprecated", None) else ""


def _parameters(function: Any) -> str:
    """The parameters without their types; those with a default end with `=`."""
    signature = inspect.signature(function)
    parameters = [
        one.replace(annotation=one.empty, default=one.empty if one.default is one.empty else ...)
        for one in signature.parameters.values()
    ]
    shown = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return shown.replace("=Ellipsis", "=")


def _commands(command: click.Command, path: str) -> Iterator[str]:
    """Each command, and each of its arguments and options."""
    yield f"{path}{_mark(command)}"
    for one in command.params:
        names = one.opts + one.secondary_opts if isinstance(one, click.Option) else [(one.name or "").upper()]
        choices = one.type.choices if isinstance(one.type, click.Choice) else ()
        yield from (" ".join((path, name, *choices)) + _mark(one) for name in names)
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from _commands(one, f"{path} {name}")


def _settings(section: dict[str, Any], sections: dict[str, Any], path: str) -> Iterator[str]:
    """Each key of `ragfm.toml`."""
    for key, schema in section["properties"].items():
        reference = schema.get("$ref") or schema.get("items", {}).get("$ref")
        if reference:
            yield from _settings(sections[reference.rpartition("/")[2]], sections, f"{path}{key}.")
        else:
            yield f"{path}{key}{DEPRECATED if schema.get('deprecated') else ''}"


def _json() -> Iterator[str]:
    """Each key that a command prints with `--json`. They run on small documents, of which one cannot be read."""
    shell = InProcessShell()
    with TemporaryDirectory() as folder, chdir(folder), patch.dict(os.environ, {"RAGFM_EMBEDDER": "hashing"}):
        (write_documents(Path(folder)) / "broken.json").write_text("{")
        (Path("docs") / "skipped.bin").write_bytes(b"\0")
        use_judge(scripted=True)
        for command in COMMANDS:
            words = command.split()
            output = shell(*words, "--json", code=options.SOME_FAILED if "ingest" in words else options.OK)
            yield from _keys(json.loads(output), f"{' '.join(word for word in words if word.isalpha())}: ")
    yield from _keys(answer_json(_filled(ragfm.Answer)), "ask: ")
    yield from _keys(extraction_json(_filled(Extraction)), "ask --schema: ")


def _keys(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{path}{key}"
            if key not in ANY_KEY:
                yield from _keys(inner, f"{path}{key}.")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _keys(inner, path)


def _filled(kind: type[Any]) -> Any:
    """An instance that holds one of each kind of value with keys, and None elsewhere."""
    hints = typing.get_type_hints(kind)
    return kind(**{one.name: _value(hints[one.name]) for one in fields(kind) if one.init})


def _value(hint: Any) -> Any:
    found = [_filled(part) for part in (hint, *typing.get_args(hint)) if is_dataclass(part)]
    return tuple(found) if typing.get_origin(hint) is tuple else next(iter(found), None)


def _http(api: dict[str, Any]) -> Iterator[str]:
    """Each request and its parameters, and each key of a body."""
    for path, item in api["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}{DEPRECATED if operation.get('deprecated') else ''}"
            yield from (f"{method.upper()} {path} {one['name']}" for one in operation.get("parameters", ()))
    for name, schema in api["components"]["schemas"].items():
        yield from (f"{name}.{key}" for key in schema.get("properties", ()))


if __name__ == "__main__":
    LISTED.write_text(json.dumps(public_api(), indent=1) + "\n", encoding="utf-8")
