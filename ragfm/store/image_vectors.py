"""Vectors of figures: their form in the catalog, and the search over those of a generation.

They are rows of `vectors` under a contract of their own, which the property `image contract` names, by the hash of the
image. With late interaction, an image has a matrix of token vectors; the search compares their mean first:

    the image's vector, or the mean of its tokens: dim float32 │ tokens × dim int8 │ the scale of each token: float32

All means are in memory, once for each image. The matrices of the candidates are read from the catalog.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import sqlalchemy as sa

from ragfm.store.catalog import Catalog, Generation, StaleReadError, alive, batches, has_images, read_property
from ragfm.store.tables import chunks, contracts, properties, vectors

if TYPE_CHECKING:
    from ragfm.core.types import Ids, ImageEmbedder, Vectors
    from ragfm.store.search_backend import Predicate

IMAGE_CONTRACT = "image contract"
"""The property with the id of the contract by which images are searched; a collection without an image embedder has
none."""
OF_IMAGES = "images"
"""The key of a contract's fingerprint that says that its vectors are those of images."""
_MAX_CACHED_PREDICATES = 16


def encode_vectors(matrices: Vectors | Sequence[Vectors]) -> list[bytes]:
    """The stored form of vectors, *shape* (n, dim), or of matrices of token vectors, *shape* (tokens, dim) each."""
    if isinstance(matrices, np.ndarray):
        return [row.astype("<f4", copy=False).tobytes() for row in matrices]
    encoded = []
    for matrix in matrices:
        scales = np.maximum(np.abs(matrix).max(axis=1), 1e-9) / 127
        tokens = np.rint(matrix / scales[:, None]).astype(np.int8)
        parts = (mean_vector(matrix).astype("<f4"), tokens, scales.astype("<f4"))
        encoded.append(b"".join(part.tobytes() for part in parts))
    return encoded


def decode_tokens(data: bytes, dim: int) -> Vectors:
    """The token vectors of an image; the image's own vector without late interaction. *Shape:* (tokens, dim)."""
    count = (len(data) - 4 * dim) // (dim + 4)
    if not count:
        return np.frombuffer(data, dtype="<f4", count=dim).reshape(1, dim)
    tokens = np.frombuffer(data, dtype=np.int8, count=count * dim, offset=4 * dim).reshape(count, dim)
    scales = np.frombuffer(data, dtype="<f4", count=count, offset=4 * dim + count * dim)
    decoded: Vectors = tokens * scales[:, None]
    return decoded


def is_encoded(data: bytes, dim: int) -> bool:
    """Whether the size is that of stored vectors."""
    return len(data) >= 4 * dim and (len(data) - 4 * dim) % (dim + 4) == 0


def mean_vector(matrix: Vectors) -> Vectors:
    """The mean of token vectors, at unit length. *Shape:* (tokens, dim) -> (dim,)."""
    mean = matrix.mean(axis=0)
    unit: Vectors = (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float32)
    return unit


def image_contract(connection: sa.Connection) -> tuple[int, Mapping[str, Any]] | None:
    """The id and fingerprint of the contract by which images are searched, None without an image embedder."""
    contract_id = read_property(connection, IMAGE_CONTRACT)
    if contract_id is None:
        return None
    query = sa.select(contracts.c.fingerprint).where(contracts.c.id == int(contract_id))
    return int(contract_id), connection.execute(query).scalar_one()


def use_contract(connection: sa.Connection, contract_id: int | None) -> None:
    """Search images by this contract from now on; None for no longer."""
    connection.execute(properties.delete().where(properties.c.key == IMAGE_CONTRACT))
    if contract_id is not None:
        connection.execute(properties.insert().values(key=IMAGE_CONTRACT, value=str(contract_id)))


def figures_at(connection: sa.Connection, generation: int) -> dict[int, str]:
    """The hashes of the images of a generation's figures by chunk id, ascending."""
    if not has_images(connection):
        return {}
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
        self.contract: tuple[int, Mapping[str, Any]] | None = None
        figures: dict[int, str] = {}
        with catalog.read() as connection:
            self.contract = image_contract(connection)
            if self.contract is not None:
                figures = figures_at(connection, generation.id)
                dim = int(self.contract[1]["dim"])
                known: dict[str, Vectors] = {}
                if earlier is not None and earlier.contract is not None and earlier.contract[0] == self.contract[0]:
                    known = {key: earlier._matrix[row] for key, row in earlier._rows.items()}  # noqa: SLF001
                wanted = dict.fromkeys(figures.values())
                new = [key for key in wanted if key not in known]
                known |= {key: np.frombuffer(data, "<f4", dim) for key, data in self._read(connection, new)}
                images = [key for key in wanted if key in known]
                self._rows = {key: row for row, key in enumerate(images)}
                self._matrix = np.array([known[key] for key in images], dtype=np.float32).reshape(-1, dim)
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
        """The figures that meet the predicate. Raises StaleReadError."""
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
        assert self.contract is not None
        dim = int(self.contract[1]["dim"])
        images = {chunk: self._figures[chunk] for chunk in ids.tolist() if chunk in self._figures}
        with self._catalog.read() as connection:
            scores = {
                key: float((query @ decode_tokens(data, dim).T).max(axis=1).mean())
                for key, data in self._read(connection, dict.fromkeys(images.values()))
            }
        if len(scores) < len(set(images.values())):
            raise StaleReadError
        return np.array([scores.get(images.get(chunk, ""), np.nan) for chunk in ids.tolist()], dtype=np.float32)

    def _read(self, connection: sa.Connection, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The stored vectors of images; those without any are left out."""
        assert self.contract is not None
        contract_id, contract = self.contract
        query = sa.select(vectors.c.text_hash, vectors.c.vector, vectors.c.checksum)
        for batch in batches([bytes.fromhex(key) for key in keys]):
            found = query.where(vectors.c.contract_id == contract_id, vectors.c.text_hash.in_(batch))
            for row in connection.execute(found):
                if crc32(row.vector) != row.checksum or not is_encoded(row.vector, int(contract["dim"])):
                    raise self._catalog.damage_error(f"the vectors of the image {row.text_hash.hex()} are damaged")
                yield row.text_hash.hex(), row.vector
