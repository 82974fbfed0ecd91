"""Options of a connector: what a user writes becomes what the connector's constructor says it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from ragfm.core.errors import ConfigError
from ragfm.core.registry import load_plugin

if TYPE_CHECKING:
    from ragfm.core.types import Connector


def connect(
    plugin: str, location: str, options: Mapping[str, Any], limits: Mapping[str, Any] | None = None
) -> Connector:
    """A connector for a location. `limits` are options that it is given only where it has them.

    Empty `include` and `exclude` are as none. Raises ConfigError for an option that the connector doesn't have, or
    whose value is not of the type that it is annotated with: `"5"` is an int, and one text a list of one.
    """
    made = load_plugin("connectors", plugin)
    known = {name: at for name, at in inspect.signature(made).parameters.items() if at.kind is at.KEYWORD_ONLY}
    given = {key: value for key, value in options.items() if value or key not in ("include", "exclude")}
    for key in given:
        if key not in known:
            raise ConfigError(f"The connector {plugin!r} has no option {key!r}.", f"It has: {', '.join(known)}.")
    hints = get_type_hints(made.__init__)
    read = {key: _read(value, hints.get(key, Any), f"{plugin}.{key}") for key, value in given.items()}
    connector: Connector = made(location, **{key: at for key, at in (limits or {}).items() if key in known} | read)
    return connector


def _read(value: Any, hint: Any, name: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    reader = TypeAdapter(hint)
    try:
        return reader.validate_python(value)
    except ValidationError as error:
        if isinstance(value, str):
            try:
                return reader.validate_python([value])
            except ValidationError:
                pass
        said = error.errors()[0]["msg"]
        # The value is not shown: a password may have got where it doesn't belong.
        raise ConfigError(f"The option `{name}` can't be read: {said[0].lower()}{said[1:]}.") from None
