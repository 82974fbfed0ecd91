"""Settings: `ragfm.toml` next to the collection. Environment variables override it, command-line options both.

An environment variable is `RAGFM_` plus the key, with `__` for a dot: `RAGFM_READER`, `RAGFM_CHUNK__SIZE`.
Unknown keys are errors.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ragfm.core.calibration import Calibration
from ragfm.core.errors import ConfigError
from ragfm.core.promise import AnsweredPromise, VerifiedPromise
from ragfm.core.types import MAX_HOPS

SETTINGS_FILE = "ragfm.toml"
CONFIG_VARIABLE = "RAGFM_CONFIG"
"""Names the settings file of a collection on PostgreSQL."""
# What a running server can change, but for models that it loads at its start. Its processes that index uploads read the
# second line themselves.
_OF_USERS = ("groups", "groups_claim", "scopes", "rate", "uploads_mb")
_RELOADED = {
    *("ask", "search", "server.markdown", *(f"server.oidc.{key}" for key in _OF_USERS)),
    *("parse", "chunk", "files", "sources", "tags"),
}
_AT_START = {"ask.context_tokens", "ask.reranker", "ask.verifier", "search.reranker"}
_PREFIX = "RAGFM_"  # of environment variables
_HINT = "docs/configuration.md lists all keys."
_TYPE_NAME = re.compile(r"(?:constrained-)?(?:str|int|float|bool)|(?:list|literal)\[.+\]")
AnswerMode: TypeAlias = Literal["strict", "prefer", "open"]
_S = TypeVar("_S", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ChunkSection(_Section):
    """How documents are split into chunks."""

    size: int | None = Field(None, ge=16)  # tokens of the embedding model, with the chunk's context


class ParseSection(_Section):
    """Which parser reads which format."""

    parsers: dict[str, str] = {}  # by suffix
    fallback: str | None = None
    images: bool | Literal["pages"] = False


class SearchSection(_Section):
    """How `search` ranks. A weight is that of the cosine or reranker; the other scores have the rest."""

    k: int = Field(5, ge=1)  # hits
    weight: float | None = Field(None, ge=0, le=1)
    code_weight: float = Field(0.4, ge=0, le=1)
    candidates: int = Field(100, ge=1)  # chunks of each index
    reranker: str | None = None
    rerank_weight: float | None = Field(None, ge=0, le=1)
    rerank_candidates: int = Field(20, ge=1)  # hits


class AskSection(_Section):
    """How `ask` and `chat` answer."""

    k: int | None = Field(None, ge=1)  # passages in the prompt
    reranker: str = "auto"
    hops: int = Field(1, ge=1, le=MAX_HOPS)
    mode: AnswerMode = "prefer"
    strategy: str = "zero-shot"
    min_confidence: float | None = Field(None, ge=0, le=1)
    wrong_cost: float = Field(1.0, ge=0)  # in right answers
    confidence: Calibration | None = None
    guarantee: VerifiedPromise | None = None
    answered_guarantee: AnsweredPromise | None = None
    verifier: str = "auto"
    contradictions: bool = True
    followup: Literal["auto", "off"] = "auto"
    answer_tokens: int = Field(256, ge=1)
    log: bool = False
    context_tokens: int = Field(4096, ge=256)

    @property
    def ranking_judge(self) -> str:
        """The judge that ranks passages, which are more than those to answer from: the small one unless named."""
        return "small" if self.verifier in ("auto", "none") else self.verifier


class FilesSection(_Section):
    """How folders are read."""

    max_mb: float = Field(100, gt=0)  # MiB


class OidcSection(_Section):
    """Sign-in by OpenID Connect, if there is an issuer."""

    issuer: str | None = None
    client_id: str = "ragfm"
    client_secret: SecretStr | None = None
    audience: str | None = None  # of bearer tokens
    sign_in_scope: str = "openid profile"
    user_claim: str = "sub"
    groups_claim: str = "groups"
    groups: dict[str, list[str]] = {}  # access groups by value of the claim
    scopes: list[Literal["read", "write"]] = ["read", "write"]
    rate: float = Field(600, gt=0)  # requests a minute
    uploads_mb: float = Field(1000, ge=0)  # MB
    url: str | None = Field(None, pattern=r"^https?://[^\s?#]+$")
    session_secret: SecretStr | None = Field(None, min_length=32)


class ServerSection(_Section):
    """How `ragfm serve` answers, and who may ask it."""

    markdown: Literal["safe", "as is"] = "safe"
    oidc: OidcSection = OidcSection()


def _check_duration(text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[1-9][0-9]{0,5}[smhd]", text):
        raise PydanticCustomError("duration", 'Expected a number with s, m, h or d, such as "1h"')
    return text


class SourceSection(_Section):
    """A source that `ragfm ingest` without arguments syncs; one `[[sources]]` table for each."""

    location: str
    name: str | None = None
    connector: str | None = None
    options: dict[str, str | int | float | bool | list[str]] = {}
    include: list[str] = []
    exclude: list[str] = []
    tags: dict[str, str | int | float | bool] = {}
    allow: list[str] = []
    every: Annotated[str, BeforeValidator(_check_duration)] | None = None

    @property
    def interval(self) -> float | None:
        """Seconds between two syncs, if there is a schedule."""
        seconds = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
        return int(self.every[:-1]) * seconds[self.every[-1]] if self.every else None


class TagsSection(_Section):
    """Tags for the documents that match a pattern, one `[[tags]]` table each. Later ones override earlier ones."""

    match: str = Field(min_length=1)
    tags: dict[str, str | int | float | bool]


class Settings(BaseSettings):
    """All keys of `ragfm.toml`. docs/configuration.md describes each of them."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    embedder: str = "bundled"
    index: str = "auto"
    backend: str = "local"
    backend_options: dict[str, dict[str, Any]] = {}  # by plugin
    language: str | None = None  # ISO 639-1, or `simple`
    reader: str = "bundled"
    reader_options: dict[str, dict[str, Any]] = {}  # by plugin
    adapter: str | None = None
    parse: ParseSection = ParseSection()
    chunk: ChunkSection = ChunkSection()
    search: SearchSection = SearchSection()
    ask: AskSection = AskSection()
    files: FilesSection = FilesSection()
    server: ServerSection = ServerSection()
    sources: list[SourceSection] = []
    tags: list[TagsSection] = []

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment overrides the given values, which are those of the file."""
        return env_settings, init_settings


def reload_settings(old: _S, new: _S, section: str = "") -> tuple[_S, list[str], list[str]]:
    """The settings with which a running server goes on: `old`, with those changes that are safe.

    Also returns the names of the keys that were changed, and of those whose change needs a restart.
    """
    update, changed, kept = dict[str, Any](), list[str](), list[str]()
    for name in type(old).model_fields:
        before, after, key = getattr(old, name), getattr(new, name), f"{section}{name}"
        if isinstance(before, _Section):
            update[name], more_changed, more_kept = reload_settings(before, after, f"{key}.")
            changed, kept = changed + more_changed, kept + more_kept
        elif before != after and key not in _AT_START and (key in _RELOADED or section[:-1] in _RELOADED):
            update[name] = after
            changed.append(key)
        elif before != after:
            kept.append(key)
    return old.model_copy(update=update), changed, kept


def settings_path(place: Path) -> Path:
    """The settings file of a folder, or the file itself."""
    return place / SETTINGS_FILE if place.is_dir() else place


def _locate_models(values: dict[str, Any], folder: Path) -> None:
    """Replace models that are files or folders next to the settings file by their paths, whatever directory we are in.

    Embedders stay, since collections record their names.
    """
    for table, key in [(values, "reader"), (values, "adapter"), (values.get("ask"), "verifier")]:
        if not isinstance(table, dict):
            continue
        name = table.get(key)
        names = ("auto", "small", "base") if key == "verifier" else ()
        if not isinstance(name, str) or name in ("bundled", "none", *names):
            continue
        plugin, colon, model = name.rpartition(":")
        if plugin != "openai" and model and (path := folder.absolute() / model).exists():
            table[key] = f"{plugin}{colon}{path}"


def load_settings(place: Path, **options: Any) -> Settings:
    """Load a settings file, or that of a folder, if it exists, then the environment, then options that are not None.

    Raises ConfigError, which names the file and the key.
    """
    for name in os.environ:
        section, nested, key = name.removeprefix(_PREFIX).lower().partition("__")
        # A variable without a section may belong to another program.
        if name.startswith(_PREFIX) and nested and section not in Settings.model_fields:
            raise ConfigError(f"Environment variable {name}: there is no key `{section}.{key}`.", _HINT)
    path = settings_path(place)
    values: dict[str, Any] = {}
    if path.is_file():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path} cannot be read: {error}.") from error
    _locate_models(values, path.parent)
    try:
        settings = Settings(**values)
    except SettingsError as error:  # a variable of a section or a list
        text = getattr(error.__cause__, "doc", "")
        names = (name for name, value in os.environ.items() if name.upper().startswith(_PREFIX) and value == text)
        raise ConfigError(f"Environment variable {next(names, _PREFIX)}: {text!r} is not JSON.", _HINT) from error
    except ValidationError as error:
        # A value that may have several types has an error for each, with the name of the type behind its keys.
        reasons: dict[tuple[str, ...], list[str]] = {}
        for one in error.errors():
            location = tuple(map(str, one["loc"]))
            if len(location) > 1 and _TYPE_NAME.fullmatch(location[-1]):
                location = location[:-1]
            reasons.setdefault(location, []).append(f"{one['msg'][0].lower()}{one['msg'][1:]}")
        first, keys = error.errors()[0], next(iter(reasons))
        key = ".".join(keys)
        problem = f"`{key}`: {' or '.join(reasons[keys])}, but it is {first['input']!r}"
        if first["type"] == "extra_forbidden":
            problem = f"there is no key `{key}`"
        # The variable of the key, or of a section or list that it is in; its value overrides that of the file.
        variables = {name.upper(): name for name, value in os.environ.items() if value}
        wanted = (f"{_PREFIX}{'__'.join(keys[:end])}".upper() for end in range(len(keys), 0, -1))
        variable = next((variables[name] for name in wanted if name in variables), None)
        raise ConfigError(f"{f'Environment variable {variable}' if variable else path}: {problem}.", _HINT) from error
    given = {key: value for key, value in options.items() if value is not None}
    return settings.model_copy(update=given)
