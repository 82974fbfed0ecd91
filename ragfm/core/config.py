"""Settings: `ragfm.toml` beside the collection, environment variables over it, command-line options over both.

An environment variable is `RAGFM_` and the key, with `__` for a dot: `RAGFM_READER`, `RAGFM_CHUNK__SIZE`.
A key that doesn't exist is an error.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ragfm.core.calibration import Calibration
from ragfm.core.errors import ConfigError

FILE = "ragfm.toml"
_PREFIX = "RAGFM_"  # of environment variables
Fusion: TypeAlias = Literal["convex", "rrf"]
AnswerMode: TypeAlias = Literal["strict", "prefer", "open"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChunkSection(_Section):
    """How documents are split."""

    size: int | None = Field(None, ge=16, description="Most tokens of a chunk, its context included, in the embedding "
                             "model's own tokens. Default: the model's window, at most 256.")  # fmt: skip
    overlap: int = Field(0, ge=0, description="At most so many tokens of a chunk's end are repeated, in whole "
                         "sentences, at the start of the next.")  # fmt: skip


class SearchSection(_Section):
    """How `search` finds."""

    k: int = Field(5, ge=1, description="How many hits.")
    fusion: Fusion = Field(
        "convex",
        description="How `hybrid` makes one score of cosine and BM25: `convex`, a "
        "weighted sum of both, each scaled to [0, 1]; or `rrf`, reciprocal rank fusion.",
    )
    weight: float | None = Field(None, ge=0, le=1, description="The weight of the cosine in `convex`; the rest is "
                                 "BM25's. Default: 0.6, but 0.2 where the bundled embedding model, which knows English "
                                 "only, meets another language.")  # fmt: skip
    code_weight: float = Field(0.4, ge=0, le=1, description="The same where the query has a code, as `AB-1234/5`; at "
                               "most `weight`.")  # fmt: skip
    candidates: int = Field(100, ge=1, description="How many chunks each index gives to `hybrid`; more where more "
                            "hits are wanted.")  # fmt: skip
    reranker: str | None = Field(None, description="A model that reads query and passage together and ranks anew what "
                                 "was found: a folder, a name on the Hugging Face hub, or `PLUGIN:NAME`.")  # fmt: skip
    rerank_weight: float = Field(1.0, ge=0, le=1, description="How much its scores count; the rest is the search's own "
                                 "scores', both scaled to [0, 1].")  # fmt: skip
    rerank_candidates: int = Field(30, ge=1, description="How many hits it is given; more where more are wanted.")
    rerank_budget_ms: float | None = Field(None, gt=0, description="How long it may take. Hits that it has not scored "
                                           "by then come after those that it has. Default: no limit.")  # fmt: skip


class AskSection(_Section):
    """How `ask` and `chat` answer."""

    k: int = Field(3, ge=1, description="How many passages the reader is given, as far as its window holds them.")
    mode: AnswerMode = Field("prefer", description="What an answer may rest on: `strict`, the documents alone, and "
                             "what no passage supports is left out; `prefer`, the documents, and what no passage "
                             "supports is marked; `open`, what the reader knows too, marked likewise.")  # fmt: skip
    strategy: str = Field("zero-shot", description="How the reader is asked: `zero-shot`, `few-shot`, "
                          "`chain-of-thought`, or a TOML file beside this one.")  # fmt: skip
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="In `strict` and `prefer`, an answer with less confidence is "
        "\"I don't know.\"; 0 for never. Default: the threshold of the calibration.")  # fmt: skip
    confidence: Calibration | None = Field(None, description="What `ragfm tune --confidence` found of the reader's "
                                           "answers. Default: for the bundled reader, what ragfm knows.")  # fmt: skip
    verifier: Literal["bundled", "none"] = Field(
        "bundled", description="Whether a second, small network reads question and passages, too, and counts in "
        "citations and confidence.")  # fmt: skip
    contradictions: bool = Field(True, description="Whether an answer says where another passage says otherwise.")
    distinct: bool = Field(True, description="Whether a hit that says what a better one says is left out, and the "
                           "next one taken.")  # fmt: skip
    merge: bool = Field(True, description="Whether hits that follow one another in a section are shown as one passage.")
    order: Literal["rank", "document"] = Field("rank", description="The order of passages: best first, or those of a "
                                               "document as they stand there.")  # fmt: skip
    followup: Literal["rules", "reader", "off"] = Field(
        "rules", description="How a question that leans on those before it is made to stand alone for the search: by "
        "`rules`, for English; by the `reader`, which has to take grammars; or not at all.")  # fmt: skip
    answer_tokens: int = Field(256, ge=1, description="Most tokens of an answer.")
    log: bool = Field(False, description="Whether each question, its passages, prompt and answer are kept in a file "
                      "beside the collection, see docs/chat.md.")  # fmt: skip
    context_tokens: int = Field(4096, ge=256, description="The reader's window, for prompt and answer together; at "
                                "most what the model was trained for.")  # fmt: skip


class FilesSection(_Section):
    """How folders are read."""

    max_mb: float = Field(100, gt=0, description="Larger files are skipped, and said so. In MiB.")


class SourceSection(_Section):
    """A source that `ragfm ingest` without arguments syncs. A list: one `[[sources]]` for each."""

    location: str = Field(description="A folder, a file, or a glob within a folder, relative to this file; or an "
                          "address.")  # fmt: skip
    name: str | None = Field(None, description="What its documents' addresses begin with. Default: the location.")
    connector: str | None = Field(None, description="The connector plugin. Default: `web` for an address that begins "
                                  "with `http`, else `files`.")  # fmt: skip
    options: dict[str, str | int | float | bool | list[str]] = Field({}, description="Options of the connector, see "
                                                                     "docs/connectors.md.")  # fmt: skip
    include: list[str] = Field([], description="Only files that match one of these patterns.")
    exclude: list[str] = Field([], description="No files that match one of these patterns.")
    tags: dict[str, str | int | float | bool] = Field({}, description="Metadata for all its documents, for filters.")
    allow: list[str] = Field([], description="The groups that may see its documents. Default: everybody.")


class Settings(BaseSettings):
    """All keys of `ragfm.toml`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    embedder: str = Field("bundled", description="The embedding model of a new collection: `bundled`, a folder, a "
                          "name on the Hugging Face hub, or `PLUGIN:NAME`.")  # fmt: skip
    index: str = Field("auto", description="The kind of vector index, see `ragfm plugins`; `auto` picks by size and "
                       "memory.")  # fmt: skip
    language: str | None = Field(None, description="The language of the keyword index, as ISO 639-1 (`de`), or "
                                 "`simple` for words as they stand. Default: detected.")  # fmt: skip
    index_memory_mb: int | None = Field(None, ge=64, description="Memory that `auto` may plan for the vectors, in MiB. "
                                        "Default: a quarter of the machine's.")  # fmt: skip
    reader: str = Field("bundled", description="The model that answers: `bundled`, a `.gguf` file, a folder, a name "
                        "on the Hugging Face hub, or `PLUGIN:NAME`.")  # fmt: skip
    reader_options: dict[str, dict[str, Any]] = Field({}, description="Options of readers, by the name of their "
                                                      "plugin: `[reader_options.llama-cpp]`.")  # fmt: skip
    adapter: str | None = Field(None, description="What the reader was taught: a folder of `ragfm adapt train` or a "
                                "GGUF file; `none`. Default: for `bundled` the one that ragfm brings.")  # fmt: skip
    chunk: ChunkSection = ChunkSection()
    search: SearchSection = SearchSection()
    ask: AskSection = AskSection()
    files: FilesSection = FilesSection()
    sources: list[SourceSection] = []

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes over what is given, which is the file's content."""
        return env_settings, init_settings


def load_settings(folder: Path, **options: Any) -> Settings:
    """The settings of `folder/ragfm.toml`, if there is one, the environment, and options that are not None.

    Raises ConfigError, which names the file and the key.
    """
    for name in os.environ:
        section, nested, key = name.removeprefix(_PREFIX).lower().partition("__")
        if name.startswith(_PREFIX) and nested and section not in Settings.model_fields:  # others may be anybody's
            raise ConfigError(f"The environment variable {name}: there is no key `{section}.{key}`.", _HINT)
    path = folder / FILE
    values: dict[str, Any] = {}
    if path.is_file():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path} can't be read: {error}.") from error
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise ConfigError(f"{path if values else 'The environment'}: {_first(error)}.", _HINT) from error
    given = {key: value for key, value in options.items() if value is not None}
    return settings.model_copy(update=given)


_HINT = "docs/configuration.md lists all keys."


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"there is no key `{key}`"
    return f"`{key}`: {detail['msg'][0].lower()}{detail['msg'][1:]}, but it is {detail['input']!r}"
