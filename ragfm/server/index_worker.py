"""The process that indexes uploads: `python -m ragfm.server.index_worker COLLECTION`.

It has the owner's handle and takes no requests. It syncs in slices in which the keys take turns, and reports as lines
of JSON on standard output. It ends when nothing is left, or when standard input is closed, which means that the server
has ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ragfm.collection import Collection
from ragfm.core.errors import RagfmError
from ragfm.core.progress import Progress
from ragfm.ingestion.turns import Turns
from ragfm.server.json_logging import configure_logging
from ragfm.server.uploads import Uploads
from ragfm.store.collection_store import UPLOADS_SOURCE


def main(collection: Path) -> None:
    """Sync the uploads of a collection and report on standard output after each slice."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with suppress(OSError):
        os.nice(5)  # answers have priority
    uploads = Uploads(collection)
    turns = Turns(uploads.owner_of_path)
    with Collection.open(collection) as owner:
        began = time.monotonic()
        try:
            for report in owner.sync_in_turns(uploads.folder, turns, name=UPLOADS_SOURCE, progress=_report_progress):
                failed = {failure.uri: f"{failure.stage}: {failure.error}" for failure in report.failed}
                _report(failed=failed | {skip.uri: skip.why for skip in report.skipped}, began=began)
                began = time.monotonic()
        except RagfmError as error:
            _report(error=error.message)


def _exit_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written to standard input: this returns when the server has ended
    os._exit(1)


def _report_progress(progress: Progress) -> None:
    chunks = int(progress.figures.get("chunks", 0))
    _report(progress={"documents": progress.done, "total": progress.total or 0, "chunks": chunks})


def _report(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    configure_logging(debug=False)
    main(Path(sys.argv[1]))
