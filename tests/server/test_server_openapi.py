"""The OpenAPI schema is complete and holds for all responses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.running_server import Running, eventually

KNOWN = {
    "model": ["handbook", "handbook:script", "nothing"],
    "uri": ["docs/leave.md", "docs/hr/salaries.txt", "docs/board/plans.txt", ".uploads/0123456789abcdef/a.txt"],
    "rating": ["handbook/1", "handbook/-1", "/", "nothing/1"],
}
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_the_openapi_names_all_routes_forms_and_errors(running: Running) -> None:
    api = running.client().get("/openapi.json").json()
    assert set(api["paths"]) == {
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/search",
        "/v1/check",
        "/v1/embeddings",
        "/v1/ratings",
        "/v1/insights",
        "/v1/insights/{number}",
        "/v1/insights/export",
        "/v1/documents",
        "/v1/documents/{uri}",
        "/v1/outline/{uri}",
        "/v1/find/{uri}",
        "/v1/pages/{uri}",
        "/v1/boxes/{uri}",
        "/v1/images/{image}",
        "/v1/review",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for path, item in api["paths"].items():
        for operation in item.values():
            assert {"400", "401", "404", "413", "429", "500", "503"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
            assert operation["security"] == ([] if path in ("/healthz", "/readyz") else [{"key": []}])
    assert "text/event-stream" in api["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert "ChatChunk" in api["components"]["schemas"]


def narrowed(api: Any) -> Any:
    """The schema with known values for names and URIs, so that requests get past the lookups."""
    for item in api["paths"].values():
        for parameter in (given for operation in item.values() for given in operation.get("parameters", ())):
            if parameter["name"] in KNOWN:
                parameter["schema"] = {"type": "string", "enum": KNOWN[parameter["name"]]}
    for name, schema in api["components"]["schemas"].items():
        if name.endswith("Request") or name.startswith("Body_"):
            known = {key: {"type": "string", "enum": KNOWN[key]} for key in schema["properties"] if key in KNOWN}
            schema["properties"] |= known
    return api


@pytest.mark.slow
def test_no_request_makes_the_server_fail(running: Running, tmp_path: Path) -> None:
    eventually(lambda: running.client().get("/readyz").status_code == 200, 300)  # 503 counts as a failure
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(narrowed(running.client().get("/openapi.json").json())))
    key = f"Authorization: Bearer {running.secrets['hr']}"
    options = [
        "--checks",
        CHECKS,
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        "100",
        "--request-timeout",
        "60",
        "--suppress-health-check",
        "all",
        "--generation-database",
        "none",
        "--no-color",
    ]
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        str(schema),
        "--url",
        running.address,
        "-H",
        key,
        *options,
    ]
    done = subprocess.run([*command, "-H", key, *options], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
