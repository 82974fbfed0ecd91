"""Tags: metadata that users give to documents. They override the metadata of the document itself.

    source   `ingest --tag`, or `tags` in a `[[sources]]` table: all documents of the source
    rules    `[[tags]]` tables of ragfm.toml: documents whose uri matches a pattern; later rules override earlier ones

A document's recipe holds its tags. If they have changed, nothing is parsed, unless a key was removed: then the value of
the document itself must be restored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from unicodedata import normalize

from ragfm.core.errors import ConfigError
from ragfm.core.globs import matches_glob
from ragfm.store.filters import RESERVED_KEYS

if TYPE_CHECKING:
    from ragfm.core.types import Scalar


def matches_uri(pattern: str, uri: str) -> bool:
    """Whether a glob matches a uri, one of its folders, or the end of either: `hr/*.md` matches `docs/hr/leave.md`.

    `*` stays within a level, `**` matches any number of levels. A name with `[` matches itself, too. Both may be in
    either Unicode form.
    """
    pattern, uri = normalize("NFC", pattern), normalize("NFC", uri)
    if pattern == uri or uri.endswith(f"/{pattern}"):
        return True
    levels = uri.split("/")
    wanted = re.sub(r"(?:\*\*/)+", "**/", pattern.rstrip("/")).split("/")
    if wanted == [""]:
        return False
    return matches_glob(levels, ("**", *wanted, "**"))


def check_tag_names(names: Iterable[str]) -> None:
    """Raise ConfigError for a tag that filters would read as a property of the document."""
    for name in names:
        if name in RESERVED_KEYS:
            raise ConfigError(
                f"The tag {name!r} is reserved: a filter reads it as a property of the document.",
                "Choose another name for the tag.",
            )


def tags_of(recipe: str) -> dict[str, Scalar]:
    """The tags of the document with this recipe."""
    tags: dict[str, Scalar] = json.loads(recipe or "{}").get("tags", {})
    return tags


def differs_by_tags_only(before: str, after: str) -> bool:
    """Whether two recipes differ in their tags only, and no key is gone."""
    old, new = json.loads(before or "{}"), json.loads(after)
    tags, new_tags = old.pop("tags", {}), new.pop("tags", {})
    return bool(old == new and tags.keys() <= new_tags.keys())
