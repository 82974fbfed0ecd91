"""Parse damaged documents: each yields a document or an error that describes the damage.

    python benchmarks/bench_fuzz.py --inputs 1200 --seed 1

The inputs are the documents of $RAGFM_DATA and damaged copies of them: bytes changed, parts cut, zeroed, repeated or
moved, and for formats that are zip archives the same in one of their files, packed again with valid checksums. They are
parsed in confined processes, as `ragfm ingest` does. An *exception* is an error that no parser handles; a *crash* is
the end of the parser's process. The last line is the result in JSON, with each exception and crash.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import time
import zipfile
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import measure

from ragfm.core.errors import RagfmError, SkipDocument
from ragfm.core.types import Blob, Document
from ragfm.parsing.sandbox.worker_pool import WorkerPool
from ragfm.parsing.sandbox.worker_process import Limits

_FORMATS = "pdf docx pptx xlsx xls odt epub rtf html xml eml msg csv json ipynb doc ppt".split()
_MAX_BYTES = 2 << 20
_LIMITS = Limits(stall_seconds=20, seconds=60)
_UNEXPECTED = re.compile(r"[\w.]+: ")  # the class of an exception; other messages begin with the name of the file
_CRASHED = re.compile(r"its parser (?:crashed|ended|was killed|sent)")


def main() -> None:
    """Parse the originals and damaged copies, print a summary, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_200, help="number of damaged copies")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="parser processes")
    parser.add_argument("--formats", default=",".join(_FORMATS))
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    rng, start = random.Random(args.seed), time.monotonic()
    originals = originals_of(args.formats.split(","))
    outcomes: dict[str, Counter[str]] = {}
    problems: list[dict[str, str]] = []
    with_name = [(file, "", file.read_bytes()) for file in originals]
    # Every format gets the same number of copies, however many of its files there are.
    by_suffix: dict[str, list[Path]] = {}
    for file in originals:
        by_suffix.setdefault(file.suffix.lower(), []).append(file)
    for number in range(args.inputs):
        suffix = sorted(by_suffix)[number % len(by_suffix)]
        file = rng.choice(by_suffix[suffix])
        how, data = damage(rng, file.read_bytes())
        with_name.append((file, how, data))

    pool = WorkerPool(_LIMITS, args.workers)
    for file, how, data in with_name:
        suffix = file.suffix.lower()
        outcome, why = judge(pool.submit(Blob(data), f"fuzz/input{suffix}"))
        kind = "damaged" if how else "original"
        outcomes.setdefault(f"{suffix.removeprefix('.')}, {kind}", Counter())[outcome] += 1
        if outcome in ("exception", "crash"):
            problems.append({"file": file.name, "damage": how, "outcome": outcome, "error": why[:300]})
            print(f"{file.name}, {how or 'original'}: {why}", flush=True)
    pool.close()
    totals: Counter[str] = sum(outcomes.values(), Counter())
    result = {
        **measure.about("fuzz", ("ragfm", "pypdfium2")),
        "seed": args.seed,
        "originals": len(originals),
        "damaged": args.inputs,
        "outcomes": dict(totals),
        "by_format": {name: dict(counts) for name, counts in sorted(outcomes.items())},
        "problems": problems,
        "seconds": round(time.monotonic() - start),
    }
    if not args.no_save:
        measure.save(result, "fuzz")
    print(json.dumps(result))


def originals_of(formats: list[str]) -> list[Path]:
    """The files of these formats, up to 2 MiB each."""
    root = Path(os.environ.get("RAGFM_DATA", "../shared/data"), "documents")
    suffixes = {f".{name}" for name in formats}
    files = (path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in files if 0 < path.stat().st_size <= _MAX_BYTES)


def damage(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """A damaged copy of a file, and what was done to it."""
    if data.startswith(b"PK") and rng.random() < 0.8:
        try:
            return _damage_member(rng, data)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError):
            pass  # the original is damaged or protected
    return _damage_bytes(rng, data)


def _damage_member(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as copy:
        names = [info.filename for info in archive.infolist() if info.file_size and not info.is_dir()]
        chosen = rng.choice([name for name in names if name.endswith((".xml", ".rels", ".xhtml", ".opf"))] or names)
        how = ""
        for info in archive.infolist():
            content = archive.read(info)
            if info.filename == chosen:
                how, content = _damage_bytes(rng, content)
            copy.writestr(info.filename, content)
    return f"{how} in {chosen}", packed.getvalue()


def _damage_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    changed, size = bytearray(data), len(data)
    at = rng.randrange(size)
    length = rng.randint(1, max(1, min(4096, size // 4)))
    match rng.choice(("bytes", "digits", "cut", "zeros", "repeat", "move", "remove")):
        case "bytes":
            count = rng.choice((1, 4, 32, 256))
            for _ in range(count):
                changed[rng.randrange(size)] = rng.randrange(256)
            return f"{count} bytes changed", bytes(changed)
        case "digits":  # lengths, positions, counts, coordinates
            places = [match.span() for match in re.finditer(rb"-?\d+", data)]
            for first, last in sorted(rng.sample(places, min(len(places), 8)), reverse=True):
                changed[first:last] = rng.choice((b"0", b"-1", b"99999999999", b"1114112", b"4294967295", b"1e999"))
            return "8 numbers changed", bytes(changed)
        case "cut":
            return f"cut at {at}", bytes(changed[:at]) or b"\0"
        case "zeros":
            changed[at : at + length] = bytes(min(length, size - at))
            return f"{length} zeros at {at}", bytes(changed)
        case "repeat":
            changed[at:at] = changed[at : at + length] * rng.choice((1, 50))
            return f"{length} bytes repeated at {at}", bytes(changed)
        case "move":
            piece = changed[at : at + length]
            del changed[at : at + length]
            target = rng.randrange(len(changed) + 1)
            changed[target:target] = piece
            return f"{length} bytes moved from {at} to {target}", bytes(changed)
        case _:
            del changed[at : at + length]
            return f"{length} bytes removed at {at}", bytes(changed) or b"\0"


def judge(future: Future[Document]) -> tuple[str, str]:
    """The outcome of an input, and the error."""
    try:
        document: Any = future.result()
    except SkipDocument as error:
        return "skipped", error.message
    except RagfmError as error:
        if _CRASHED.search(error.message):
            return "crash", error.message
        return ("exception" if _UNEXPECTED.match(error.message) else "refused"), error.message
    except Exception as error:
        return "exception", f"{type(error).__name__}: {error}"
    for mark in document.marks:
        may_be_empty = mark.kind == "heading" and not mark.value  # the end of sections
        if not 0 <= mark.start <= mark.end <= len(document.text) or (mark.start == mark.end and not may_be_empty):
            return "exception", f"ValueError: a mark from {mark.start} to {mark.end} of {len(document.text)} characters"
    return "parsed", ""


if __name__ == "__main__":
    main()
