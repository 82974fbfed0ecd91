"""A Qdrant server for tests: Qdrant's own engine (`qdrant-edge-py`) behind the part of its REST interface that is used.

Requests are read, and answers written, with the models of `qdrant-client`. Points are searched, filtered and counted by
the engine, in a graph once there are `indexing_threshold` KB; collections and their metadata are kept here.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

_LITTLE = 1  # KB of vectors in a segment from which the engine builds a graph


class _Collection:
    def __init__(self, folder: Path, request: models.CreateCollection) -> None:
        assert isinstance(request.vectors, models.VectorParams)
        assert request.vectors.distance == models.Distance.DOT
        self.request, self.metadata, self.folder = request, dict(request.metadata or {}), folder
        graph = request.hnsw_config or models.HnswConfigDiff()
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=request.vectors.size, distance=edge.Distance.Dot),
            hnsw_config=edge.HnswIndexConfig(m=graph.m, ef_construct=graph.ef_construct, full_scan_threshold=_LITTLE),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=_LITTLE, default_segment_number=2),
        )
        folder.mkdir(parents=True)
        self.shard = edge.EdgeShard.create(str(folder), config)

    def update(self, operation: edge.UpdateOperation) -> dict[str, Any]:
        self.shard.update(operation)
        self.shard.optimize()
        return {"operation_id": 0, "status": "completed"}


class QdrantServer:
    """A running server at `url`. `collections` are its collections by name; `requests` the paths that were called."""

    def __init__(self, folder: Path) -> None:
        self.collections: dict[str, _Collection] = {}
        self.requests: list[str] = []
        self._folder, self._created, self._lock = folder, 0, threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                path = self.path.partition("?")[0]
                with server._lock:
                    server.requests.append(f"{self.command} {path}")
                    try:
                        status, answer = 200, {"result": server._call(self.command, path, body), "status": "ok"}
                    except KeyError as error:
                        status, answer = 404, {"status": {"error": f"Not found: Collection {error} doesn't exist!"}}
                data = json.dumps({**answer, "time": 0.0}).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _call(self, method: str, path: str, body: bytes) -> Any:
        _, _, name, *rest = [*path.split("/"), "", ""]
        if not name:
            return {"collections": [{"name": one} for one in self.collections]}
        call = " ".join([method, *filter(None, rest)])
        if call == "GET exists":
            return {"exists": name in self.collections}
        if call == "PUT":
            self._created += 1
            folder = self._folder / str(self._created)
            self.collections[name] = _Collection(folder, models.CreateCollection.model_validate_json(body))
            return True
        if call == "DELETE":
            if gone := self.collections.pop(name, None):
                gone.shard.close()
                shutil.rmtree(gone.folder)
            return gone is not None
        collection = self.collections[name]
        return getattr(self, "_" + call.lower().replace(" ", "_"))(collection, body)

    def _get(self, collection: _Collection, _: bytes) -> Any:
        graph = {"m": 16, "ef_construct": 100, "full_scan_threshold": _LITTLE}
        config = models.CollectionConfig(
            params=models.CollectionParams(vectors=collection.request.vectors),
            hnsw_config=models.HnswConfig(**graph),
            optimizer_config=models.OptimizersConfig(default_segment_number=2, flush_interval_sec=5),
            metadata=collection.metadata or None,
        )
        info = models.CollectionInfo(
            status="green", optimizer_status="ok", segments_count=2, config=config, payload_schema={}
        )
        return info.model_dump(mode="json")

    def _patch(self, collection: _Collection, body: bytes) -> Any:
        collection.metadata |= models.UpdateCollection.model_validate_json(body).metadata or {}
        return True

    def _put_index(self, collection: _Collection, body: bytes) -> Any:
        request = models.CreateFieldIndex.model_validate_json(body)
        assert request.field_schema == models.PayloadSchemaType.INTEGER
        schema = edge.PayloadSchemaType.Integer
        return collection.update(edge.UpdateOperation.create_field_index(request.field_name, schema))

    def _put_points(self, collection: _Collection, body: bytes) -> Any:
        points = models.PointsList.model_validate_json(body).points
        new = [edge.Point(point.id, point.vector, point.payload) for point in points]
        return collection.update(edge.UpdateOperation.upsert_points(new))

    def _post_points_payload(self, collection: _Collection, body: bytes) -> Any:
        request = models.SetPayload.model_validate_json(body)
        if request.points is not None:
            return collection.update(edge.UpdateOperation.set_payload(request.points, request.payload))
        return collection.update(edge.UpdateOperation.set_payload_by_filter(_filter(request.filter), request.payload))

    def _post_points_delete(self, collection: _Collection, body: bytes) -> Any:
        if "points" in json.loads(body):
            ids = models.PointIdsList.model_validate_json(body).points
            return collection.update(edge.UpdateOperation.delete_points(ids))
        condition = models.FilterSelector.model_validate_json(body).filter
        return collection.update(edge.UpdateOperation.delete_points_by_filter(_filter(condition)))

    def _post_points_count(self, collection: _Collection, body: bytes) -> Any:
        request = models.CountRequest.model_validate_json(body)
        return {"count": collection.shard.count(edge.CountRequest(exact=request.exact, filter=_filter(request.filter)))}

    def _post_points_scroll(self, collection: _Collection, body: bytes) -> Any:
        request = models.ScrollRequest.model_validate_json(body)
        points, following = collection.shard.scroll(
            edge.ScrollRequest(
                offset=request.offset,
                limit=request.limit,
                filter=_filter(request.filter),
                with_payload=request.with_payload,
                with_vector=request.with_vector,
            )
        )
        records = [{"id": point.id, "payload": point.payload, "vector": point.vector} for point in points]
        return {"points": records, "next_page_offset": following}

    def _post_points_query(self, collection: _Collection, body: bytes) -> Any:
        request = models.QueryRequest.model_validate_json(body)
        parameters = request.params or models.SearchParams()
        points = collection.shard.query(
            edge.QueryRequest(
                limit=request.limit,
                query=edge.Query.Nearest(request.query.nearest),
                filter=_filter(request.filter),
                with_payload=False,
                params=edge.SearchParams(hnsw_ef=parameters.hnsw_ef, exact=bool(parameters.exact)),
            )
        )
        return {"points": [{"id": point.id, "version": 0, "score": point.score} for point in points]}


def _filter(condition: models.Filter | None) -> edge.Filter | None:
    if condition is None:
        return None
    clauses = {
        name: [_condition(one) for one in clause]
        for name in ("must", "should", "must_not")
        if (clause := getattr(condition, name))
    }
    return edge.Filter(**clauses)


def _condition(condition: Any) -> Any:
    if isinstance(condition, models.HasIdCondition):
        return edge.HasIdCondition(set(condition.has_id))
    assert isinstance(condition, models.FieldCondition)
    bounds = {name: value for name, value in condition.range if value is not None}
    return edge.FieldCondition(condition.key, range=edge.RangeFloat(**bounds))


@contextmanager
def qdrant_server(folder: Path) -> Iterator[QdrantServer]:
    """A server that keeps its points in a folder. It is stopped at the end."""
    server = QdrantServer(folder)
    try:
        yield server
    finally:
        server.stop()
