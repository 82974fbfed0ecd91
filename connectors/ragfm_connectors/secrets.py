"""Secrets come from the environment: an address names a variable, as `${NAME}`, which is looked up on connecting.

So the address can be stored, shown and logged. An address with a password written into it is refused.
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, quote, urlsplit

from ragfm.core.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET_KEYS = re.compile(
    r"passw|pwd|secret|token|api_?key|access_?key|credential|signature|^key$|^sig$", re.IGNORECASE
)
_SHORTEST = 4  # characters of a value that is worth hiding: to hide a shorter one would hide half of the message


def expand(address: str, *, quoted: bool = True) -> str:
    """An address with the variables' values in it, `quoted` as a part of an address must be. Raises ConfigError."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise ConfigError(f"The environment has no variable {match[1]}, which {address!r} names.", "Set it.")
        return quote(found, safe="") if quoted else found

    return _VARIABLE.sub(value, address)


def check_no_secret(address: str, *, user: bool = False) -> None:
    """Raises ConfigError, which does not show it, for a password in an address; with `user` for a user's name too."""
    try:
        parts = urlsplit(address)
    except ValueError:  # some characters would become others that mean something in an address
        raise ConfigError("The address of the source can't be read.", "Check its characters.") from None
    name, _, password = parts.netloc.rpartition("@")[0].partition(":")
    literal = [password, name] if user else [password]
    literal += [value for key, value in parse_qsl(parts.query) if _SECRET_KEYS.search(key)]
    if any(_VARIABLE.sub("", text) for text in literal):
        shown = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}"
        raise ConfigError(
            f"The address {shown} has a secret in it.", "Write ${NAME} in its place, and set the variable NAME."
        )


def check_option(option: str) -> None:
    """Raises ConfigError, which does not show it, for `name=value` with a secret in it that is no variable."""
    name = option.partition("=")[0]
    if "${" not in option and (_SECRET_KEYS.search(name) or _SECRET_KEYS.search(option)):
        raise ConfigError(f"The option {name!r} has a secret in it.", "Write ${NAME} in its place, and set NAME.")


def without_user(address: str) -> str:
    """An address without the user's name and password."""
    scheme, mark, rest = address.partition("://")
    netloc, slash, path = rest.partition("/")
    return f"{scheme}{mark}{netloc.rpartition('@')[2]}{slash}{path}"


def hide(message: str, *addresses: str) -> str:
    """A message in which the values of the variables of some addresses are written as `${NAME}` again."""
    for name in {name for address in addresses for name in _VARIABLE.findall(address)}:
        value = os.environ.get(name, "")
        for form in (value, quote(value, safe=""), quote(value), repr(value)[1:-1]):
            if len(form) >= _SHORTEST:
                message = message.replace(form, f"${{{name}}}")
    return message
