"""One door for plugins: what ships with ragfm and what others write both register as entry points.

A package that offers a connector `wiki` says so in its pyproject.toml:

    [project.entry-points."ragfm.connectors"]
    wiki = "my_package.wiki:WikiConnector"

Models are named alike everywhere: `MODEL`, a path or a name of the hub, `PLUGIN:MODEL`, or `PLUGIN` alone.
"""

from __future__ import annotations

import inspect
import re
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias, overload

from ragfm.core.errors import ConfigError, MissingExtraError, UnknownPluginError

Kind: TypeAlias = Literal["connectors", "embedders", "indexes", "keyword_indexes", "readers", "rerankers"]
KINDS: tuple[Kind, ...] = ("connectors", "embedders", "indexes", "keyword_indexes", "readers", "rerankers")


_DEFAULT_PLUGIN: dict[Kind, str] = {
    "embedders": "sentence-transformers",
    "readers": "transformers",
    "rerankers": "cross-encoder",
}


def plugins(kind: Kind) -> dict[str, EntryPoint]:
    """All registered plugins of a kind, by name, in alphabetical order; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=f"ragfm.{kind}"), key=lambda point: point.name)}


def load_plugin(kind: Kind, name: str) -> Any:
    """The class that a plugin registers.

    Raises UnknownPluginError, which lists the known names, and MissingExtraError where the plugin's own imports fail.
    """
    known = plugins(kind)
    if name not in known:
        raise UnknownPluginError(
            f"There is no plugin {name!r} among the {kind}.",
            f"Known: {', '.join(known) or 'none'}. `ragfm plugins` lists all that are installed.",
        )
    try:
        return known[name].load()
    except ModuleNotFoundError as error:
        distribution = known[name].dist
        package = distribution.name if distribution else "the package that brings it"
        extras = distribution.metadata.get_all("Provides-Extra") or [] if distribution else []
        raise MissingExtraError(
            f"The plugin {name!r} needs the module {error.name!r}, which is not installed.",
            f"Run `pip install '{package}[{name}]'`."
            if name in extras
            else f"Install it, or reinstall {package} with `pip install --force-reinstall {package}`.",
        ) from error


@overload
def plugin_and_model(kind: Literal["readers"], name: str) -> tuple[str, str]: ...


@overload
def plugin_and_model(kind: Kind, name: str) -> tuple[str, str | None]: ...


def plugin_and_model(kind: Kind, name: str) -> tuple[str, str | None]:
    """Split a model's name into its plugin and the model that the plugin is given, None where it names a plugin alone.

    A name without a plugin belongs to llama.cpp where it is a GGUF file or the bundled reader, else to the Hugging
    Face library of its kind.
    """
    if name in plugins(kind):
        return name, "bundled" if kind == "readers" else None
    plugin, colon, model = name.partition(":")
    if colon and re.fullmatch(r"[\w-]{2,}", plugin):  # `C:\model` and `./a:b` are paths
        return plugin, model
    if name.endswith(".gguf") or (kind == "readers" and name == "bundled"):
        return "llama-cpp", name
    return _DEFAULT_PLUGIN[kind], name


def make(kind: Kind, name: str, /, **options: Any) -> Any:
    """Build the model that a name means; `options` go to the constructor of its plugin.

    Raises as `load_plugin` does, and ConfigError for an option that it doesn't have, or where it needs a model.
    """
    plugin, model = plugin_and_model(kind, name)
    made, named = load_plugin(kind, plugin), () if model is None else (model,)
    signature, one = inspect.signature(made), kind.removesuffix("s")
    try:
        signature.bind(*named, **options)
    except TypeError as error:
        if model is None and not options:
            raise ConfigError(f"The {one} {plugin} needs the name of a model.", f"Say {plugin}:NAME.") from None
        takes = ", ".join(signature.parameters) or "nothing"
        raise ConfigError(f"The {one} {plugin} can't be made so: {error}.", f"It takes: {takes}.") from None
    return made(*named, **options)
