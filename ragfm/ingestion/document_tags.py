"""Tags: metadata that users give to documents. They override the metadata of the document itself.

    source   `ingest --tag`, or `tags` in a `[[sources]]` table: all documents of the source
    rules    `[[tags]]` tables of ragfm.toml: documents whose uri matches a pattern; later rules override earlier ones
    given    `ragfm tag`: documents that were in the collection then; their later versions keep them

A document's recipe holds the tags of its source and of the rules as `tags`, and the others as `given`. If its tags have
changed, nothing is parsed unless a key was removed: then the document's own value must be restored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from ragfm.core.errors import ConfigError
from ragfm.core.globs import matches_glob
from ragfm.store.filters import RESERVED_KEYS

if TYPE_CHECKING:
    from ragfm.core.config import TagsSection
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


def document_recipe(source_recipe: str, uri: str, rules: Sequence[TagsSection], known: str = "") -> str:
    """The recipe of a document: that of its source, the tags of rules, and what the `known` recipe has as `given`."""
    given = _parts(known).get("given")
    matching = [rule.tags for rule in rules if matches_uri(rule.match, uri)]
    if not given and not matching:
        return source_recipe
    parts = json.loads(source_recipe)
    for tags in matching:
        parts["tags"] |= tags
    return json.dumps(parts | ({"given": given} if given else {}), sort_keys=True)


def recipe_with_given(recipe: str, changes: Mapping[str, Scalar | None]) -> str:
    """The recipe after `ragfm tag`; None removes a tag."""
    parts = _parts(recipe)
    given = {**parts.get("given", {}), **changes}
    removed = [key for key in changes if changes[key] is None and key in parts.get("given", {})]
    if removed:  # no recipe of a sync has this part, so the next one parses the document
        parts["removed"] = sorted({*parts.get("removed", ()), *removed})
    parts["given"] = {key: value for key, value in given.items() if value is not None}
    if not parts["given"]:
        del parts["given"]
    return json.dumps(parts, sort_keys=True)


def tags_of(recipe: str) -> dict[str, Scalar]:
    """All tags of the document with this recipe."""
    parts = _parts(recipe)
    return {**parts.get("tags", {}), **parts.get("given", {})}


def differs_by_tags_only(before: str, after: str) -> bool:
    """Whether two recipes differ in their tags only, and no key is gone."""
    old, new = _parts(before), _parts(after)
    same = all(old.get(name) == new.get(name) for name in {*old, *new} - {"tags", "given"})
    return same and tags_of(before).keys() <= tags_of(after).keys()


def _parts(recipe: str) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(recipe or "{}")
    return parts
