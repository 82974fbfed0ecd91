"""The process that indexes uploads: `python -m ragfm.server.index_worker COLLECTION`.

It has the owner's handle, and takes no requests. What it does, it tells as lines of JSON on standard output; where
standard input ends, the server has ended, and so does it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.collection import Collection
from ragfm.core.errors import RagfmError
from ragfm.server.json_logging import log_as_json
from ragfm.server.uploads import Uploads
from ragfm.store.collection_store import UPLOADS_SOURCE

if TYPE_CHECKING:
    from ragfm.ingestion.ingest_report import Progress


def main(collection: Path) -> None:
    """Sync the uploads of a collection, and tell of it on standard output."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):
        os.nice(5)  # answers come first
    with Collection.open(collection) as owner:
        try:
            report = owner.sync(Uploads(collection).folder, name=UPLOADS_SOURCE, allow_mass_delete=True, progress=_tell)
        except RagfmError as error:
            _say(error=error.message)
            return
    failed = {failure.uri: f"{failure.stage}: {failure.error}" for failure in report.failed}
    _say(failed=failed | {skip.uri: skip.why for skip in report.skipped})


def _end_with_parent() -> None:
    """Nobody else writes to standard input: it ends when the server does."""
    os.read(0, 1)
    os._exit(1)


def _tell(progress: Progress) -> None:
    _say(progress={key: value for key, value in asdict(progress).items() if key != "waiting"})


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    log_as_json(debug=False)
    main(Path(sys.argv[1]))
