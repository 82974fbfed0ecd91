"""Connector options: values as a user writes them, converted to the types that the connector's constructor declares."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from ragfm.core.errors import ConfigError
from ragfm.core.registry import load_plugin

if TYPE_CHECKING:
    from ragfm.core.types import Connector


def build_connector(
    plugin: str, location: str, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Connector:
    """Build the connector `plugin` for a location.

    `defaults` are passed only where the connector has such an option; empty `include` and `exclude` are dropped.
    Raises ConfigError for an unknown option and for a value that does not fit the option's annotation. The text `"5"`
    fits an integer, and a single text fits a list of texts.
    """
    connector_class = load_plugin("connectors", plugin)
    parameters = inspect.signature(connector_class).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    hints = get_type_hints(connector_class.__init__, include_extras=True)

    arguments = {key: value for key, value in (defaults or {}).items() if key in names}
    for key, value in options.items():
        if key in ("include", "exclude") and not value:
            continue
        if key not in names:
            raise ConfigError(f"The connector {plugin!r} has no option {key!r}.", f"Options: {', '.join(names)}.")
        arguments[key] = _convert(value, hints.get(key, Any), f"{plugin}.{key}")
    connector: Connector = connector_class(location, **arguments)
    return connector


def _convert(value: Any, hint: Any, option: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(hint)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        if isinstance(value, str):
            try:
                return adapter.validate_python([value])
            except ValidationError:
                pass
        reason = error.errors()[0]["msg"]
        # The value is left out: it may be a password in the wrong option.
        raise ConfigError(f"The option `{option}` is invalid: {reason[0].lower()}{reason[1:]}.") from None
