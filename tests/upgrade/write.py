"""Write what a released version makes of a few documents, with the `ragfm` of its own wheel.

    python -m venv /tmp/env && /tmp/env/bin/pip install 'ragfm-VERSION-py3-none-any.whl[postgres,server]'
    python tests/upgrade/write.py /tmp/env/bin/ragfm

`VERSION.tar.gz` has a collection in a folder, its backup and its documents; `VERSION.sql.gz` is the dump of a
collection on PostgreSQL, with a key of its server and an entry in its answer log. The dump is plain SQL for PostgreSQL
15 or newer.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SCHEMA = "upgrade"
BEFORE = {
    "leave.md": "# Leave\n\nEvery employee gets 24 days of leave a year.\n",
    "welcome.md": "# Welcome\n\nThe probation period is four months.\n",
    "contacts.csv": "name,telephone\nAnn,4711\nBert,4712\n",
    "notice.txt": "This notice is out of date.\n",
    "hr/.ragfm-access": "hr\n",
    "hr/salaries.txt": "The salary of the director is 9,000 euros.\n",
}
AFTER = {"leave.md": "# Leave\n\nEvery employee gets 28 days of leave a year.\n"}
REMOVED = "notice.txt"


def main(program: str) -> None:
    """Write both files next to this one."""
    sys.path.insert(0, str(HERE.parent))
    from support.postgres_server import postgres_server

    folder = Path(tempfile.mkdtemp())
    os.environ |= {"RAGFM_EMBEDDER": "hashing", "XDG_CACHE_HOME": str(folder / "cache")}

    def ragfm(*words: str) -> str:
        command = [program, *words]
        return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout

    def ingest_twice(collection: str) -> None:
        """Two commits, the second of which replaces one document and removes another."""
        shutil.rmtree(folder / "docs", ignore_errors=True)
        for files in (BEFORE, AFTER):
            for name, text in files.items():
                (folder / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "docs" / name).write_text(text, encoding="utf-8")
            if files is AFTER:
                (folder / "docs" / REMOVED).unlink()
            ragfm("ingest", "docs", "-c", collection, *(("--tag", "team=office") if files is BEFORE else ()))

    version = ragfm("--version").split()[-1]
    ingest_twice(".ragfm")
    ragfm("backup", "backup")
    archive = str(HERE / f"{version}.tar.gz")
    names = (".ragfm", "backup", "docs")
    tar = ["tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-czf", archive, *names]
    subprocess.run(tar, cwd=folder, check=True)
    with postgres_server() as server:
        address = server.address(SCHEMA)
        ingest_twice(address)
        ragfm("keys", "add", "ann", "-c", address, "--groups", "hr")
        os.environ["RAGFM_ASK__LOG"] = "true"
        ragfm("ask", "How many days of leave?", "-c", address)
        dump = server.dump(f"--schema={SCHEMA}", "--rows-per-insert=100", "--no-owner")
    # What psql alone understands, and settings of newer servers.
    dump = re.sub(r"^(?:\\(?:un)?restrict .*|SET transaction_timeout = 0;)\n", "", dump, flags=re.M)
    (HERE / f"{version}.sql.gz").write_bytes(gzip.compress(dump.encode(), 9, mtime=0))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1])
