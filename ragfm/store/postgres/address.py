"""The address of a collection: `postgresql://user@host/database?collection=NAME`."""

from __future__ import annotations

import re

import sqlalchemy as sa

from ragfm.core.errors import ConfigError

DEFAULT_NAME = "ragfm"
_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_-]{0,62}")


def parse_address(address: str) -> tuple[sa.URL, str]:
    """The URL for SQLAlchemy, with a password that a parameter gives, and the collection's name. Raises ConfigError."""
    try:
        url = sa.make_url(address)
    except sa.exc.ArgumentError as error:
        raise ConfigError(
            f"The address of the collection is not valid: {error}.",
            "It looks like `postgresql://user@host/database?collection=NAME`.",
        ) from None
    for password in url.normalized_query.get("password", ()):
        url = url.set(password=password)
    url = url.difference_update_query(["password"])
    name = url.query.get("collection", DEFAULT_NAME)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"The name of the collection, {name!r}, is not valid.",
            "Use up to 63 lower-case letters, digits, `_` and `-`; the first one is a letter or `_`.",
        )
    return url, name
