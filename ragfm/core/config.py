"""Settings: `ragfm.toml` next to the collection. Environment variables override it, command-line options both.

An environment variable is `RAGFM_` plus the key, with `__` for a dot: `RAGFM_READER`, `RAGFM_CHUNK__SIZE`.
Unknown keys are errors.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ragfm.core.calibration import Calibration
from ragfm.core.errors import ConfigError
from ragfm.core.types import MAX_HOPS

SETTINGS_FILE = "ragfm.toml"
CONFIG_VARIABLE = "RAGFM_CONFIG"
"""Names the settings file of a collection on PostgreSQL."""
_PREFIX = "RAGFM_"  # of environment variables
_HINT = "docs/configuration.md lists all keys."
_TYPE_NAME = re.compile(r"(?:constrained-)?(?:str|int|float|bool)|(?:list|literal)\[.+\]")
Fusion: TypeAlias = Literal["convex", "rrf"]
AnswerMode: TypeAlias = Literal["strict", "prefer", "open"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ChunkSection(_Section):
    """How documents are split into chunks."""

    size: int | None = Field(
        None,
        ge=16,
        description="Maximum size of a chunk with its context, in tokens of the embedding model. "
        "Default: the model's window, up to 256.",
    )
    overlap: int = Field(
        0, ge=0, description="Maximum number of tokens repeated from the previous chunk, in whole sentences."
    )


class ParseSection(_Section):
    """Which parser reads which format."""

    parsers: dict[str, str] = Field(
        {},
        description='Parser by suffix, such as `{docx = "unstructured"}`. `ragfm plugins` lists parsers and formats.',
    )
    fallback: str | None = Field(None, description="Parser to try for a document that its first parser cannot read.")
    images: bool | Literal["pages"] = Field(
        False,
        description="Index figures: pictures, charts and photographs in documents, and image files; with `pages`, each "
        "page of a PDF file as a whole.",
    )


class SearchSection(_Section):
    """How `search` ranks."""

    k: int = Field(5, ge=1, description="Number of hits.")
    fusion: Fusion = Field(
        "convex",
        description="How `hybrid` combines cosine and BM25: `convex`, a weighted sum of both, each scaled to [0, 1]; "
        "or `rrf`, reciprocal rank fusion.",
    )
    weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the cosine in `convex`; BM25 has the rest. Default: 0.6, or 0.2 if the bundled "
        "embedding model, which is English only, meets another language.",
    )
    code_weight: float = Field(
        0.4, ge=0, le=1, description="Upper limit of the weight for queries with a code such as `AB-1234/5`."
    )
    image_weight: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Weight of the image score in `hybrid`, with an `image_embedder`; the scores of texts have the "
        "rest.",
    )
    candidates: int = Field(
        100, ge=1, description="Number of chunks that each index contributes to `hybrid`; more if `k` is larger."
    )
    reranker: str | None = Field(
        None,
        description="Model that reranks hits: `verifier` (bundled, English), a cross-encoder as a folder or a name on "
        "the Hugging Face hub, `multi-vector:NAME` for late interaction, `sparse-encoder:NAME` for SPLADE, "
        "`PLUGIN:NAME`, or `none`.",
    )
    rerank_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the reranker's scores; the search scores have the rest, on the same scale. "
        "Default: 0.5 for `verifier`, `multi-vector` and `sparse-encoder`, 1 for others.",
    )
    rerank_candidates: int = Field(20, ge=1, description="Number of hits to rerank; more if `k` is larger.")
    rerank_budget_ms: float | None = Field(
        None,
        gt=0,
        description="Time limit for reranking. Hits that were not scored in time come last. Default: no limit.",
    )


class AskSection(_Section):
    """How `ask` and `chat` answer."""

    k: int | None = Field(
        None,
        ge=1,
        description="Maximum number of passages in the prompt. Default: 3 for models of up to 200 MB, such as the "
        "bundled one, 5 up to 2 GB, 8 for larger ones.",
    )
    reranker: str = Field(
        "auto",
        description="Reranker of the passages to answer from: a name as for `search.reranker`; `auto`, the one of "
        "`search`, else `verifier` where question and documents are in English; or `none`.",
    )
    hops: Annotated[int, Field(ge=1, le=MAX_HOPS)] | Literal["auto"] = Field(
        1,
        description="Rounds of search: with 2 or 3, names in the best passages are searched for as well; `auto` takes "
        "a second round if the best passage lacks much of the question. Passages of several rounds are not reranked.",
    )
    mode: AnswerMode = Field(
        "prefer",
        description="What answers may use: `strict`, documents only, unsupported sentences are removed; `prefer`, "
        "documents only, unsupported sentences are marked; `open`, also the reader's own knowledge, marked likewise.",
    )
    strategy: str = Field(
        "zero-shot",
        description="Prompt strategy: `zero-shot`, `few-shot`, `chain-of-thought`, or a TOML file next to this one.",
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="In `strict` and `prefer`, answers with a lower confidence are withheld; 0 for never. "
        "Default: the threshold of the calibration.",
    )
    wrong_cost: float = Field(
        1.0,
        ge=0,
        description="What a wrong answer costs, if a right one is worth 1. Answers whose confidence is too low for it "
        "have the status `unsure`: below 0.5 for 1, below 0.75 for 3.",
    )
    confidence: Calibration | None = Field(
        None,
        description="Calibration of the confidence, written by `ragfm tune --confidence`. Default: one that ships.",
    )
    verifier: str = Field(
        "bundled",
        description="Small network that also reads question and passages, for ranking, citations and confidence: "
        "`bundled`, a folder made by `ragfm adapt retriever --part verifier`, or `none`.",
    )
    contradictions: bool = Field(
        True, description="Report passages that contradict the answer, which is then at most `unsure`."
    )
    distinct: bool = Field(True, description="Replace near-duplicates of better hits by the next hits.")
    merge: bool = Field(True, description="Merge consecutive hits of a section into one passage.")
    order: Literal["rank", "document"] = Field(
        "rank", description="Order of passages: best first, or as they occur in each document."
    )
    followup: Literal["auto", "rules", "reader", "off"] = Field(
        "auto",
        description="How follow-up questions are rewritten to stand alone for the search: by `rules` (English); by the "
        "`reader` (which must support grammars); `auto`, by rules where they are certain, else by the reader if it "
        "passes a check; or `off`.",
    )
    answer_tokens: int = Field(256, ge=1, description="Maximum length of an answer, in tokens.")
    log: bool = Field(
        False, description="Log questions, passages, prompts and answers in a file next to the collection."
    )
    context_tokens: int = Field(
        4096, ge=256, description="The reader's window for prompt and answer, up to what the model was trained for."
    )

    @property
    def ranking_verifier(self) -> str:
        """The verifier that ranks passages: the bundled one if answers are not verified."""
        return "bundled" if self.verifier == "none" else self.verifier


class FilesSection(_Section):
    """How folders are read."""

    max_mb: float = Field(100, gt=0, description="Maximum file size in MiB; larger files are reported as skipped.")


class UploadsSection(_Section):
    """How files that users upload to the server are indexed."""

    archive_files: int = Field(
        2000, ge=1, description="Maximum number of files in an uploaded archive; a larger one is not indexed."
    )
    waiting: int = Field(
        20, ge=1, description="Maximum number of uploads of a key that wait to be indexed; more are refused with 429."
    )


class ServerSection(_Section):
    """How `ragfm serve` answers."""

    markdown: Literal["safe", "as is"] = Field(
        "safe",
        description="Images, HTML and links in the content of answers: `safe`, shown as text; or `as is`, active in "
        "clients that render Markdown.",
    )


class SourceSection(_Section):
    """A source that `ragfm ingest` without arguments syncs; one `[[sources]]` table for each."""

    location: str = Field(description="A folder, a file, or a glob within a folder, relative to this file; or a URL.")
    name: str | None = Field(None, description="Prefix of the documents' uris. Default: the location.")
    connector: str | None = Field(
        None, description="Connector plugin. Default: `web` for URLs that start with `http`, else `files`."
    )
    options: dict[str, str | int | float | bool | list[str]] = Field(
        {}, description="Options of the connector; see docs/connectors.md."
    )
    include: list[str] = Field([], description="Only files that match one of these patterns.")
    exclude: list[str] = Field([], description="No files that match one of these patterns.")
    tags: dict[str, str | int | float | bool] = Field({}, description="Metadata of all documents, for filters.")
    allow: list[str] = Field([], description="Groups that may see the documents. Default: everyone.")


class TagsSection(_Section):
    """Tags for the documents that match a pattern, one `[[tags]]` table each. Later ones override earlier ones."""

    match: str = Field(
        min_length=1,
        description="A glob for uris, or for the end of a uri: `reports/BESTBUY*`. `*` stays within a level, `**` "
        "matches any number of levels; a folder matches everything in it.",
    )
    tags: dict[str, str | int | float | bool] = Field(description="Metadata of the documents, for filters.")


class Settings(BaseSettings):
    """All keys of `ragfm.toml`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    embedder: str = Field(
        "bundled",
        description="Embedding model of a new collection: `bundled`, a folder, a name on the Hugging Face hub, or "
        "`PLUGIN:NAME`.",
    )
    image_embedder: str | None = Field(
        None,
        description="Model that embeds figures, so that `hybrid` also finds them by what they show: a CLIP or SigLIP "
        "model, or `multi-vector:NAME` for one of the ColPali family. Needs `parse.images`. See docs/pictures.md.",
    )
    index: str = Field(
        "auto", description="Kind of vector index, see `ragfm plugins`; `auto` chooses by size and memory."
    )
    backend: str = Field(
        "local",
        description="Search backend, see `ragfm plugins`: `local` searches in files of this machine, `pgvector` "
        "searches the vectors in PostgreSQL.",
    )
    language: str | None = Field(
        None,
        description="Language of the keyword index, as ISO 639-1 (`de`), or `simple` for no stemming. "
        "Default: detected.",
    )
    index_memory_mb: int | None = Field(
        None, ge=64, description="Memory for the vectors that `auto` plans with, in MiB. Default: a quarter of the RAM."
    )
    reader: str = Field(
        "bundled",
        description="Model that answers: `bundled`, a `.gguf` file, a folder, a name on the Hugging Face hub, or "
        "`PLUGIN:NAME`.",
    )
    reader_options: dict[str, dict[str, Any]] = Field(
        {}, description="Options of readers by plugin: `[reader_options.llama-cpp]`."
    )
    adapter: str | None = Field(
        None,
        description="Adapter of the reader: a folder made by `ragfm adapt train`, a GGUF file, or `none`. Default: for "
        "`bundled` the one that ships.",
    )
    parse: ParseSection = ParseSection()
    chunk: ChunkSection = ChunkSection()
    search: SearchSection = SearchSection()
    ask: AskSection = AskSection()
    files: FilesSection = FilesSection()
    uploads: UploadsSection = UploadsSection()
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


def settings_path(place: Path) -> Path:
    """The settings file of a folder, or the file itself."""
    return place / SETTINGS_FILE if place.is_dir() else place


def _keys(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys that lead to a value, without the name of a type, which pydantic adds if there are several."""
    *keys, last = map(str, location)
    return tuple(keys) if keys and _TYPE_NAME.fullmatch(last) else (*keys, last)


def _locate_models(values: dict[str, Any], folder: Path) -> None:
    """Replace models that are files or folders next to the settings file by their paths, whatever directory we are in.

    Embedders stay, since collections record their names.
    """
    options = values.get("reader_options")
    readers = options.values() if isinstance(options, dict) else ()
    named = [(values, "reader"), (values, "adapter"), (values.get("ask"), "verifier")]
    for table, key in [*named, *((reader, "projector") for reader in readers)]:
        if not isinstance(table, dict):
            continue
        name = table.get(key)
        if not isinstance(name, str) or name in ("bundled", "none"):
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
        reasons: dict[tuple[str, ...], list[str]] = {}  # a value that may have several types has an error for each
        for one in error.errors():
            reasons.setdefault(_keys(one["loc"]), []).append(f"{one['msg'][0].lower()}{one['msg'][1:]}")
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
