"""Identities of a source, such as users, mail addresses and group names, and the access groups that they stand for.

A source knows its own identities, and a collection its own groups. A file, in TOML, translates:

    "group:hr" = "hr"
    "user:ann" = ["hr", "board"]
    "everyone" = "*"

`*` stands for everybody. An identity that the file lacks stands for no group, so what only that one may see is visible
to nobody.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ragfm.core.access_groups import OWN_GROUP_PREFIX
from ragfm.core.errors import ConfigError

_EVERYBODY = "*"
_HINT = 'Write lines such as "group:hr" = ["hr"].'


class Identities:
    """The groups of each identity in a mapping file. Mail addresses are compared without regard to case."""

    def __init__(self, file: str | Path) -> None:
        """Raises ConfigError if the file cannot be read, and for a value that is not a name of groups."""
        try:
            table = tomllib.loads(Path(file).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor TOML
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"The identities in {str(file)!r} cannot be read: {reason}.", _HINT) from None
        self._groups = {_key(identity): _checked(value, identity, file) for identity, value in table.items()}
        self.unmapped: set[str] = set()
        """The identities without a group that were asked for."""

    def groups(self, identities: Iterable[str]) -> tuple[str, ...] | None:
        """The sorted groups of all these identities together; None for everybody."""
        found: set[str] = set()
        for identity in identities:
            groups = self._groups.get(_key(identity))
            if groups is None:
                self.unmapped.add(identity)
            else:
                found.update(groups)
        return None if _EVERYBODY in found else tuple(sorted(found))


def _key(identity: str) -> str:
    return identity.lower() if "@" in identity else identity


def _checked(value: Any, identity: str, file: str | Path) -> list[str]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        valid = isinstance(name, str) and name.strip() == name != "" and name.isprintable()
        if not valid or name.startswith(OWN_GROUP_PREFIX):
            raise ConfigError(f"{str(file)!r}: {name!r} of {identity!r} is not the name of a group.", _HINT)
    return names
