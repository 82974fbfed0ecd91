"""The tables of the catalog, in SQLAlchemy Core and portable SQL types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from ragfm.core.types import Ref

SCHEMA_VERSION = 3
SCHEMA = sa.MetaData()
_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite auto-increments only INTEGER
_String = sa.String().with_variant(sa.String(collation="C"), "postgresql")  # ordered by code point, as in SQLite
MAX_COMPARED_CHARACTERS = 200
"""Characters of a metadata value that filters compare. An index keeps that many on a B-tree page, see below."""
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,2})?", re.ASCII)

properties = sa.Table(
    "properties", SCHEMA, sa.Column("key", _String, primary_key=True), sa.Column("value", _String, nullable=False)
)

contracts = sa.Table(
    "contracts",
    SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fingerprint", sa.JSON, nullable=False),
)

generations = sa.Table(
    "generations",
    SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", _String, nullable=False),
    sa.Column("contract_id", sa.ForeignKey("contracts.id"), nullable=False),
    sa.Column("chunks", sa.Integer, nullable=False),  # live at this generation, so that a lost row is noticed
    sa.Column("created", _String, nullable=False),
)

sources = sa.Table(
    "sources",
    SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", _String, nullable=False, unique=True),
    sa.Column("connector", _String, nullable=False),
    sa.Column("location", _String, nullable=False),
    sa.Column("root", _String, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("allow", sa.JSON, nullable=False),
    sa.Column("removed", sa.Boolean, nullable=False),  # the row stays for readers of older generations
)

# Small columns come first, long ones last. SQLite stores the start of a row on a B-tree page, where zeroed bytes are
# noticed, and the rest of a long row on overflow pages, where a page of zeros passes the checksum. The columns there
# can be checked otherwise: metadata and marks are JSON, which has no zeros, and the text has a hash. The order also
# lets SQLite read the small columns without the text.
documents = sa.Table(
    "documents",
    SCHEMA,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("source_id", sa.ForeignKey("sources.id"), nullable=False),
    sa.Column("born", sa.Integer, nullable=False),
    sa.Column("died", sa.Integer),
    sa.Column("restricted", sa.Boolean, nullable=False),  # to its rows in `groups`; without any, nobody may see it
    sa.Column("characters", sa.Integer, nullable=False),
    sa.Column("chunk_count", sa.Integer, nullable=False),
    sa.Column("text_hash", sa.LargeBinary, nullable=False),
    sa.Column("digest", _String, nullable=False),
    sa.Column("recipe", _String, nullable=False),
    sa.Column("media_type", _String, nullable=False),
    sa.Column("path", _String, nullable=False),
    sa.Column("uri", _String, nullable=False),
    sa.Column("revision", _String, nullable=False),
    sa.Column("allow", sa.JSON(none_as_null=True)),  # access groups from the connector; NULL without rules
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("marks", sa.JSON, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
sa.Index(
    "documents_alive",
    documents.c.uri,
    unique=True,
    sqlite_where=documents.c.died.is_(None),
    postgresql_where=documents.c.died.is_(None),
)
sa.Index("documents_path", documents.c.source_id, documents.c.path)

chunks = sa.Table(
    "chunks",
    SCHEMA,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("document_id", sa.ForeignKey("documents.id"), nullable=False, index=True),
    sa.Column("start", sa.Integer, nullable=False),
    sa.Column("end", sa.Integer, nullable=False),
    sa.Column("page", sa.Integer),
    sa.Column("place", _String),
    sa.Column("headings", sa.JSON, nullable=False),
    sa.Column("context", sa.Text, nullable=False),
    sa.Column("text_hash", sa.LargeBinary, nullable=False, index=True),  # of the embedded text
    sa.Column("born", sa.Integer, nullable=False, index=True),
    sa.Column("died", sa.Integer, index=True),
    sa.Column("image", _String),  # of a figure: the key of its image
    sa.Column("box", sa.JSON(none_as_null=True)),
    sqlite_autoincrement=True,  # ids are never reused
)
sa.Index(
    "chunks_image",
    chunks.c.image,
    sqlite_where=chunks.c.image.is_not(None),
    postgresql_where=chunks.c.image.is_not(None),
)

images = sa.Table(
    "images",
    SCHEMA,
    sa.Column("hash", _String, primary_key=True),  # BLAKE2b-128 of the data, in hex: also its checksum
    sa.Column("media_type", _String, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

vectors = sa.Table(
    "vectors",
    SCHEMA,
    sa.Column("contract_id", sa.ForeignKey("contracts.id"), primary_key=True),
    sa.Column("text_hash", sa.LargeBinary, primary_key=True),  # or, under a contract of images, that of the image
    sa.Column("vector", sa.LargeBinary, nullable=False),  # little-endian float32
    sa.Column("checksum", _Id, nullable=False),  # CRC-32 of the vector
)

tags = sa.Table(
    "tags",
    SCHEMA,
    sa.Column("document_id", sa.ForeignKey("documents.id"), primary_key=True),
    sa.Column("key", _String, primary_key=True),
    sa.Column("text", _String, nullable=False),
    sa.Column("number", sa.Float),
)
sa.Index("tags_text", tags.c.key, tags.c.text)
sa.Index("tags_number", tags.c.key, tags.c.number)

groups = sa.Table(
    "groups",
    SCHEMA,
    sa.Column("document_id", sa.ForeignKey("documents.id"), primary_key=True),
    sa.Column("name", _String, primary_key=True),
)

failures = sa.Table(
    "failures",
    SCHEMA,
    sa.Column("source_id", sa.ForeignKey("sources.id"), primary_key=True),
    sa.Column("path", _String, primary_key=True),
    sa.Column("stage", _String, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("revision", _String, nullable=False),
    sa.Column("recipe", _String, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("at", _String, nullable=False),
)

# What only a collection on PostgreSQL has, such as the state of its servers. It belongs to no generation:
# copies and digests leave it out. A folder has `uploads` as well, without their content.
SERVER_STATE = sa.MetaData()
DATABASE_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
"""The clock that servers share, in seconds."""

server_keys = sa.Table(
    "server_keys",
    SERVER_STATE,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False, unique=True),
    sa.Column("key", sa.JSON, nullable=False),
)

server_rates = sa.Table(
    "server_rates",
    SERVER_STATE,
    sa.Column("name", sa.String, primary_key=True),  # of the key
    sa.Column("until", sa.Double, nullable=False),  # when its allowance is complete again, in seconds
    prefixes=["UNLOGGED"],  # written by every request, and worth nothing after a crash
)

answer_log = sa.Table(
    "answer_log",
    SERVER_STATE,
    sa.Column("id", _Id, sa.Identity(), primary_key=True),
    sa.Column("at", _String, nullable=False),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("query", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("abstained", sa.Boolean, nullable=False),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("reader", sa.Text),  # NULL: calculated
    sa.Column("adapter", sa.Text),
    sa.Column("groups", sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")),  # NULL: owner
    sa.Column("passages", sa.JSON, nullable=False),
    sa.Column("prompt", sa.JSON, nullable=False),
    sa.Column("citations", sa.JSON, nullable=False),
    sa.Column("contradictions", sa.JSON, nullable=False),
    sa.Column("usage", sa.JSON, nullable=False),
    sa.Column("seconds", sa.JSON, nullable=False),
    sa.Column("rating_id", _String, nullable=False, unique=True),
    sa.Column("thumbs", _String),
    sa.Column("correction", sa.Text),
    sa.Column("shown", sa.Text),
    sa.Column("status", _String),
    sa.Column("confidence", sa.Double),
    sa.Column("key", _String),
    sa.Column("request_id", _String),
    sa.Column("calculation", sa.JSON(none_as_null=True)),
    sa.Column("fingerprint", sa.JSON(none_as_null=True)),
    sqlite_autoincrement=True,  # ids are never reused
)

# They have no text of users and documents, and stay when their entries are deleted.
citation_labels = sa.Table(
    "citation_labels",
    SERVER_STATE,
    sa.Column("entry", _Id, primary_key=True, autoincrement=False),
    sa.Column("citation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("right", sa.Boolean, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("at", _String, nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("fingerprint", sa.JSON, nullable=False),
    sa.Column("rated", sa.Boolean, nullable=False),  # from a rating of the answer
)

uploads = sa.Table(
    "uploads",
    SERVER_STATE,
    sa.Column("id", _String, primary_key=True),
    sa.Column("owner", _String, nullable=False, index=True),
    sa.Column("name", _String, nullable=False),
    sa.Column("groups", sa.JSON, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),  # with the overhead of its rows
    sa.Column("created", sa.Double, nullable=False),  # seconds since 1970
    sa.Column("state", _String, nullable=False),  # queued, ready, failed or removed
    sa.Column("error", sa.Text),  # why it failed
    sa.Column("listing", sa.JSON(none_as_null=True)),  # its files, as last listed
    sa.Column("listed_with", _String),  # the version and the limits of that listing
    sa.Column("digest", _String, nullable=False),  # of the content
    sa.Column("checksum", _String, nullable=False),  # of id, owner, name, groups, bytes and digest
)

upload_parts = sa.Table(
    "upload_parts",
    SERVER_STATE,
    sa.Column("upload_id", sa.ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

# Checksums of the rows of documents, which PostgreSQL's pages need not have, see `PostgresDatabase.seal`.
document_checksums = sa.Table(
    "document_checksums",
    SERVER_STATE,
    sa.Column("document_id", sa.ForeignKey(documents.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("checksum", sa.LargeBinary, nullable=False),
)


def as_number(text: str) -> float | None:
    """The number that a metadata value is compared as, None if it is compared as text.

    Integers have at most fifteen digits, which a float represents exactly; longer ones are identifiers.
    """
    digits = text.lstrip("+-")
    is_identifier = len(digits) > 15 and digits.isdigit()
    return float(text) if _NUMBER.fullmatch(text) and not is_identifier else None


def text_hash(text: str) -> bytes:
    """Hash of a text, 16 bytes: the key of its vector, and the check that the stored text is intact."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def stored_ref(values: Mapping[str, Any]) -> Ref:
    """The entry of a source that a column has as JSON."""
    allow = values["allow"]
    return Ref(**{**values, "allow": None if allow is None else tuple(allow)})
