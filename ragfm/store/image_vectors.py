"""Vectors of figures: their form in the catalog, and the search over those of a generation.

They are rows of `vectors` under a contract of their own, which the property `image contract` names. With late
interaction, an image has a matrix of token vectors and their mean, by which candidates are found:

    hash of the image          its vector, or the mean of its tokens: dim float32
    hash of the image, 1       tokens × dim int8 │ the scale of each token: float32

All vectors or means are in memory, once for each image. The matrices of the candidates are read from the catalog.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import sqlalchemy as sa

from ragfm.store.catalog import Catalog, Generation, StaleReadError, alive, batches, read_image_contract
from ragfm.store.tables import IMAGE_CONTRACT, chunks, properties, vectors

if TYPE_CHECKING:
    from ragfm.core.types import Ids, ImageEmbedder, Vectors
    from ragfm.store.search_backend import Predicate

OF_IMAGES = "images"
"""The key of a contract's fingerprint that says that its vectors are those of images."""
TOKENS = b"\x01"
"""Follows the hash of the image in the key of its tokens."""
HASH_BYTES = 16
"""Size of the hash of an image."""
_MAX_CACHED_PREDICATES = 16


def encode_vectors(keys: Sequence[bytes], matrices: Vectors | Sequence[Vectors]) -> dict[bytes, bytes]:
    """The rows of images with vectors, *shape* (n, dim), or with matrices of tokens, *shape* (tokens, dim) each."""
    if isinstance(matrices, np.ndarray):
        return {key: row.astype("<f4").tobytes() for key, row in zip(keys, matrices, strict=True)}
    encoded = {}
    for key, matrix in zip(keys, matrices, strict=True):
        scales = np.maximum(np.abs(matrix).max(axis=1), 1e-9) / 127
        tokens = np.rint(matrix / scales[:, None]).astype(np.int8)
        encoded[key] = mean_vector(matrix).astype("<f4").tobytes()
        encoded[key + TOKENS] = tokens.tobytes() + scales.astype("<f4").tobytes()
    return encoded


def decode_tokens(data: bytes, dim: int) -> Vectors:
    """The token vectors in a row. *Shape:* (tokens, dim)."""
    count = len(data) // (dim + 4)
    tokens = np.frombuffer(data, dtype=np.int8, count=count * dim).reshape(count, dim)
    decoded: Vectors = tokens * np.frombuffer(data, dtype="<f4", offset=count * dim)[:, None]
    return decoded


def has_tokens(key: bytes) -> bool:
    """Whether the row with this key has the tokens of an image."""
    return len(key) > HASH_BYTES


def mean_vector(matrix: Vectors) -> Vectors:
    """The mean of token vectors, at unit length. *Shape:* (tokens, dim) -> (dim,)."""
    mean = matrix.mean(axis=0)
    unit: Vectors = (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float32)
    return unit


def use_contract(connection: sa.Connection, contract_id: int | None) -> None:
    """Search images by this contract from now on; None for no longer."""
    connection.execute(properties.delete().where(properties.c.key == IMAGE_CONTRACT))
    if contract_id is not None:
        connection.execute(properties.insert().values(key=IMAGE_CONTRACT, value=str(contract_id)))


def figures_at(connection: sa.Connection, generation: int) -> dict[int, str]:
    """The hashes of the images of a generation's figures by chunk id, ascending."""
    query = sa.select(chunks.c.id, chunks.c.image).where(chunks.c.image.is_not(None), alive(chunks, generation))
    return {row.id: row.image for row in connection.execute(query.order_by(chunks.c.id))}


class ImageVectors:
    """The vectors of the figures at a generation, searchable by a text. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        generation: Generation,
        embedder: Callable[[int, Mapping[str, Any]], ImageEmbedder],
        earlier: ImageVectors | None = None,
    ) -> None:
        """Read the vectors that `earlier` lacks. Raises StaleReadError, DamagedCollectionError."""
        self.generation = generation.id
        self._catalog = catalog
        self._embedder = embedder
        self._lock = threading.Lock()
        self._allowed: dict[Predicate, Ids] = {}
        self._rows: dict[str, int] = {}  # of the images
        self._matrix: Vectors = np.empty((0, 0), dtype=np.float32)
        self._late = False
        self.contract: tuple[int, Mapping[str, Any]] | None = None
        figures: dict[int, str] = {}
        with catalog.read() as connection:
            self.contract = read_image_contract(connection)
            if self.contract is not None:
                figures = figures_at(connection, generation.id)
                dim = int(self.contract[1]["dim"])
                known: dict[str, Vectors] = {}
                if earlier is not None and earlier.contract is not None and earlier.contract[0] == self.contract[0]:
                    known = {key: earlier._matrix[row] for key, row in earlier._rows.items()}  # noqa: SLF001
                wanted = dict.fromkeys(figures.values())
                new = [key for key in wanted if key not in known]
                known |= {key: np.frombuffer(data, "<f4") for key, data in self._read(connection, new)}
                images = [key for key in wanted if key in known]
                self._rows = {key: row for row, key in enumerate(images)}
                self._matrix = np.array([known[key] for key in images], dtype=np.float32).reshape(-1, dim)
                self._late = any(self._read(connection, images[:1], TOKENS))
        if self.contract is not None and catalog.floor() > generation.id:
            raise StaleReadError
        self._figures = {chunk: key for chunk, key in figures.items() if key in self._rows}
        self._ids: Ids = np.fromiter(self._figures, dtype=np.int64)
        self._row_of = np.array([self._rows[key] for key in self._figures.values()], dtype=np.int64)

    def __len__(self) -> int:
        """Number of figures with a vector."""
        return len(self._ids)

    @property
    def embedder(self) -> ImageEmbedder:
        """The embedder of these vectors. Raises EmbedderMismatchError."""
        assert self.contract is not None
        return self._embedder(*self.contract)

    def embed(self, query: str) -> Vectors:
        """The query's vectors. *Shape:* (tokens, dim); (1, dim) without late interaction. Raises TooLongError."""
        return np.atleast_2d(self.embedder.embed_queries([query])[0])

    def allowed(self, where: Predicate | None) -> Ids:
        """The figures that meet the predicate."""
        if where is None:
            return self._ids
        with self._lock:
            found = self._allowed.get(where)
        if found is None:
            is_figure = chunks.c.image.is_not(None)
            found = where.visible_part(self._catalog).chunk_ids(self.generation, is_figure, *where.conditions)
            with self._lock:
                if len(self._allowed) >= _MAX_CACHED_PREDICATES:
                    self._allowed.clear()
                self._allowed[where] = found
        return np.intersect1d(self._ids, found, assume_unique=True)

    def nearest(self, query: Vectors, k: int, allowed: Ids) -> Ids:
        """The `k` of the `allowed` figures whose vectors, or means of them, are nearest to the query's."""
        rows = self._row_of[np.searchsorted(self._ids, allowed)]
        cosines = (self._matrix @ mean_vector(query))[rows]
        return allowed[np.lexsort((allowed, -cosines))[:k]]

    def scores(self, query: Vectors, ids: Ids) -> Vectors:
        """The score of each chunk, NaN for those that are not a figure with a vector. *Shape:* (n,) -> (n,).

        It is the cosine, with late interaction the mean over the query's tokens of the highest cosine with a token of
        the image. Raises StaleReadError if an image is gone.
        """
        images = [self._figures.get(chunk, "") for chunk in ids.tolist()]
        wanted = set(filter(None, images))
        if self._late:
            dim = self._matrix.shape[1]
            with self._catalog.read() as connection:
                scores = {
                    key: float((query @ decode_tokens(data, dim).T).max(axis=1).mean())
                    for key, data in self._read(connection, wanted, TOKENS)
                }
            if len(scores) < len(wanted):
                raise StaleReadError
        else:
            scores = {key: float(self._matrix[self._rows[key]] @ query[0]) for key in wanted}
        return np.array([scores.get(key, np.nan) for key in images], dtype=np.float32)

    def _read(
        self, connection: sa.Connection, images: Iterable[str], suffix: bytes = b""
    ) -> Iterator[tuple[str, bytes]]:
        """Stored rows of images by hash; those without any are left out. Raises DamagedCollectionError."""
        assert self.contract is not None
        contract_id, contract = self.contract
        query = sa.select(vectors.c.text_hash, vectors.c.vector, vectors.c.checksum)
        for batch in batches([bytes.fromhex(key) + suffix for key in images]):
            found = query.where(vectors.c.contract_id == contract_id, vectors.c.text_hash.in_(batch))
            for row in connection.execute(found):
                key = row.text_hash[:HASH_BYTES].hex()
                dim, size = int(contract["dim"]), len(row.vector)
                has_size = size % (dim + 4) == 0 if has_tokens(row.text_hash) else size == 4 * dim
                if not has_size or crc32(row.vector) != row.checksum:
                    raise self._catalog.damage_error(f"the vectors of the image {key} are damaged")
                yield key, row.vector
