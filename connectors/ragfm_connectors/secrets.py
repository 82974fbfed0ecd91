"""Secrets in addresses and options: `${NAME}` stands for an environment variable, which is read on connecting.

If NAME is not set, but NAME_FILE is, the value is the content of that file, without a line break at its end: containers
and systemd give secrets as files.

Addresses can therefore be stored, shown and logged. An address that contains a password itself is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from ragfm.core.errors import ConfigError
from ragfm.core.text import without_secrets

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_HINT = "Write ${NAME} instead, and set the environment variable NAME."
_SECRET_KEYS = re.compile(
    r"passw|pwd|secret|token|api_?key|access_?key|credential|signature|^key$|^sig$", re.IGNORECASE
)
_from_files: dict[str, set[str]] = {}  # the values that variables had: a file may have changed since
_MIN_HIDDEN_CHARACTERS = 4  # replacing shorter values would replace half of a message


def expand(text: str, *, quoted: bool = True) -> str:
    """The text with each `${NAME}` replaced by its variable, URL-quoted if `quoted`.

    Raises ConfigError for a variable that is not set, and for a file that cannot be read.
    """

    def value(match: re.Match[str]) -> str:
        found = _value(match[1])
        if not found:
            problem = f"The environment variable {match[1]} of {text!r} is {'not set' if found is None else 'empty'}."
            raise ConfigError(problem, f"Set {match[1]}, or {match[1]}_FILE, and run the command again.")
        return quote(found, safe="") if quoted else found

    return _VARIABLE.sub(value, text)


def _value(name: str) -> str | None:
    """The value of a variable, or of its file; None if neither is set."""
    file = os.environ.get(f"{name}_FILE")
    if name in os.environ or not file:
        return os.environ.get(name)
    try:
        value = Path(file).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"The file {file!r} of {name}_FILE cannot be read: {reason}.", "Correct the path.") from None
    _from_files.setdefault(name, set()).add(value)
    return value


def check_no_secret(address: str, *, user: bool = False) -> None:
    """Raise ConfigError, which does not show it, for a password in an address; with `user`, for a user name too."""
    try:
        parts = urlsplit(address)
    except ValueError:  # characters that become meaningful in an address when they are normalized
        raise ConfigError("The address of the source is not a valid URL.", "Check its characters.") from None
    name, _, password = parts.netloc.rpartition("@")[0].partition(":")
    secrets = [password, name] if user else [password]
    secrets += [value for key, value in parse_qsl(parts.query) if _SECRET_KEYS.search(key)]
    # A slash in a password looks like the end of the host's name: `ann:pass/word@host`.
    has_slash = ":" in parts.netloc and not name and re.search(r"[^/]@", parts.path)
    if has_slash or any(_VARIABLE.sub("", secret) for secret in secrets):
        scheme, _, rest = without_secrets(address).partition("://")
        shown = f"{scheme}://…@{rest.partition('/')[0]}"
        raise ConfigError(f"The address {shown} contains a secret.", _HINT)


def check_option(option: str) -> None:
    """Raise ConfigError, which does not show it, for `name=value` with a secret that is not a variable."""
    name = option.partition("=")[0]
    if "${" not in option and (_SECRET_KEYS.search(name) or _SECRET_KEYS.search(option)):
        raise ConfigError(f"The option {name!r} contains a secret.", _HINT)


def check_variable(name: str, value: str) -> None:
    """Raise ConfigError, which does not show it, for an option whose value is not an environment variable."""
    if "${" not in value:
        raise ConfigError(f"The option `{name}` contains a secret.", _HINT)


def without_user(address: str) -> str:
    """The address without user name and password."""
    scheme, separator, rest = address.partition("://")
    netloc, slash, path = rest.partition("/")
    return f"{scheme}{separator}{netloc.rpartition('@')[2]}{slash}{path}"


def hide(message: str, *addresses: str) -> str:
    """The message with the values of the addresses' variables replaced by `${NAME}`."""
    for name in {name for address in addresses for name in _VARIABLE.findall(address)}:
        for value in (os.environ.get(name, ""), *_from_files.get(name, ())):
            for form in (value, quote(value, safe=""), quote(value), repr(value)[1:-1]):
                if len(form) >= _MIN_HIDDEN_CHARACTERS:
                    message = message.replace(form, f"${{{name}}}")
    return message
