"""The plugin registry. Built-in and third-party plugins alike register as entry points.

A package with a connector `wiki` declares it in its pyproject.toml:

    [project.entry-points."ragfm.connectors"]
    wiki = "my_package.wiki:WikiConnector"

Models are named in the same way everywhere: `MODEL` (a path or a name on the hub), `PLUGIN:MODEL`, or `PLUGIN`.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

from ragfm.core.errors import ConfigError, MissingExtraError, UnknownPluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind: TypeAlias = Literal[
    "backends", "connectors", "embedders", "indexes", "keyword_indexes", "parsers", "readers", "rerankers"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_DEFAULT_PLUGIN: dict[Kind, str] = {
    "embedders": "sentence-transformers",
    "readers": "transformers",
    "rerankers": "cross-encoder",
}


def plugins(kind: Kind) -> dict[str, EntryPoint]:
    """The registered plugins of a kind by name, in alphabetical order. Nothing is imported."""
    return dict(_entry_points(kind, tuple(map(_state, sys.path))))


@lru_cache(maxsize=2 * len(KINDS))
def _entry_points(kind: Kind, _: tuple[tuple[int, ...], ...]) -> dict[str, EntryPoint]:
    """The entry points of a kind. Finding them reads a file of every installed package, hence the cache."""
    from importlib.metadata import entry_points  # which imports the email package

    return {point.name: point for point in sorted(entry_points(group=f"ragfm.{kind}"), key=lambda point: point.name)}


def _state(folder: str) -> tuple[int, ...]:
    """Changes when a package is installed into a folder."""
    try:
        found = Path(folder).stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def load_plugin(kind: Kind, name: str) -> Any:
    """Import the class of a plugin.

    Raises UnknownPluginError, which lists the known names, and MissingExtraError if the plugin's imports fail.
    """
    known = plugins(kind)
    if name not in known:
        raise UnknownPluginError(
            f"There is no plugin {name!r} among the {kind}.",
            f"Known: {', '.join(known) or 'none'}. `ragfm plugins` lists all that are installed.",
        )
    try:
        return known[name].load()
    except (ImportError, AttributeError) as error:
        why = f"cannot be loaded: {error}"  # a library has another version than the plugin expects
        if isinstance(error, ModuleNotFoundError):
            why = f"needs the module {error.name!r}, which is not installed"
        distribution = known[name].dist
        package = distribution.name if distribution else "the package that provides it"
        extras = distribution.metadata.get_all("Provides-Extra") or [] if distribution else []
        hint = f"Install it, or reinstall {package} with `pip install --force-reinstall {package}`."
        if package == "ragfm":
            extra = f"[{name}]" if name in extras else ""
            hint = f"Run `pip install -e '.{extra}'` in ragfm's source folder."
        elif name in extras:
            hint = f"Run `pip install '{package}[{name}]'`."
        raise MissingExtraError(f"The plugin {name!r} {why}.", hint) from error


@overload
def plugin_and_model(kind: Literal["readers"], name: str) -> tuple[str, str]: ...


@overload
def plugin_and_model(kind: Kind, name: str) -> tuple[str, str | None]: ...


def plugin_and_model(kind: Kind, name: str) -> tuple[str, str | None]:
    """Split a model's name into its plugin and the model, None if it names a plugin alone.

    The default plugin of readers is llama.cpp for GGUF files and the bundled one, else the Hugging Face library of the
    kind.
    """
    if name in plugins(kind):
        return name, "bundled" if kind == "readers" else None
    plugin, colon, model = name.partition(":")
    if colon and re.fullmatch(r"[\w-]{2,}", plugin):  # `C:\model` and `./a:b` are paths
        return plugin, model
    if kind == "readers" and (name.endswith(".gguf") or name == "bundled"):
        return "llama-cpp", name
    return _DEFAULT_PLUGIN[kind], name


def make(kind: Kind, name: str, /, **options: Any) -> Any:
    """Create a model by name; `options` go to the constructor of its plugin.

    Raises the errors of `load_plugin`, and ConfigError for an unknown option or a missing model.
    """
    plugin, model = plugin_and_model(kind, name)
    factory, arguments = load_plugin(kind, plugin), () if model is None else (model,)
    signature, label = inspect.signature(factory), kind.removesuffix("s")
    nameless = ConfigError(f"The {label} {plugin!r} needs the name of a model.", f"Use {plugin}:NAME.")
    if model == "":
        raise nameless
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        if model is None and not options:
            raise nameless from None
        accepted = ", ".join(signature.parameters) or "no options"
        raise ConfigError(f"The {label} {plugin!r} cannot be created: {error}.", f"It accepts: {accepted}.") from None
    return factory(*arguments, **options)
