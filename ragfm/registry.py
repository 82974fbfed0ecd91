"""One door for plugins: what ships with ragfm and what others write both register as entry points.

A package that offers a connector `wiki` says so in its pyproject.toml:

    [project.entry-points."ragfm.connectors"]
    wiki = "my_package.wiki:WikiConnector"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias

from ragfm.errors import MissingExtraError, UnknownPluginError

Kind: TypeAlias = Literal["connectors", "embedders", "indexes", "keyword_indexes", "readers", "rerankers"]
KINDS: tuple[Kind, ...] = ("connectors", "embedders", "indexes", "keyword_indexes", "readers", "rerankers")


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
