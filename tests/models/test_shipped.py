"""The weights that come with ragfm are those of SHA256SUMS."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import ragfm.models

SHIPPED = Path(ragfm.models.__file__).parent / "shipped"


def test_each_shipped_file_has_its_checksum() -> None:
    lines = (SHIPPED / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    files = [path for path in SHIPPED.glob("*/*") if path.suffix != ".md"]
    assert listed == {str(path.relative_to(SHIPPED)): sha256(path.read_bytes()).hexdigest() for path in files}
