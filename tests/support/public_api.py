"""The names that users rely on, as a list. `python tests/support/public_api.py` writes it to tests/public_api.json."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

import ragfm
from ragfm.cli import options
from ragfm.cli.main import ragfm as program
from ragfm.server.app import create_app
from ragfm.server.served_models import ServedModels

LISTED = Path(__file__).parents[1] / "public_api.json"


def public_api() -> dict[str, list[str]]:
    """Names with parameters, commands with options, exit codes, settings, and the server's requests and keys."""
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
        "http": sorted(_http(http)),
    }


def _names(name: str, value: Any) -> Iterator[str]:
    """A function with its parameters; a class with those of its constructor, its fields and its methods."""
    if not inspect.isclass(value):
        yield f"{name}{_parameters(value)}" if callable(value) else name
        return
    own = [kind for kind in value.__mro__ if kind.__module__.startswith("ragfm")]
    if value is not ragfm.Settings and not getattr(value, "_is_protocol", False):
        yield f"{name}{_parameters(value)}"
    for member in {key for kind in own for key in (*vars(kind), *inspect.get_annotations(kind))}:
        if not member.startswith("_") and value is not ragfm.Settings:
            function = getattr(value, member, None)
            yield f"{name}.{member}{_parameters(function) if inspect.isroutine(function) else ''}"


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
    yield path
    for one in command.params:
        names = one.opts + one.secondary_opts if isinstance(one, click.Option) else [(one.name or "").upper()]
        choices = one.type.choices if isinstance(one.type, click.Choice) else ()
        yield from (" ".join((path, name, *choices)) for name in names)
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
            yield f"{path}{key}"


def _http(api: dict[str, Any]) -> Iterator[str]:
    """Each request and its parameters, and each key of a body."""
    for path, item in api["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}"
            yield from (f"{method.upper()} {path} {one['name']}" for one in operation.get("parameters", ()))
    for name, schema in api["components"]["schemas"].items():
        yield from (f"{name}.{key}" for key in schema.get("properties", ()))


if __name__ == "__main__":
    LISTED.write_text(json.dumps(public_api(), indent=1) + "\n", encoding="utf-8")
