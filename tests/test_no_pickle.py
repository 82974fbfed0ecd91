"""No path unpickles anything of a collection: a pickle runs whatever whoever wrote it likes.

Except Babel's CLDR data, pickles in its own package: whoever can change those can change its code.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from babel import core as babel_core

ROOT = Path(__file__).parents[1]
_WATCH = """
import json, pickle, sys, traceback
found = []

def seen(event, arguments):
    if event == "pickle.find_class":
        frames = [frame.filename for frame in traceback.extract_stack()]
        found.append([event, [str(argument) for argument in arguments], frames])

def refuse(name):
    original = getattr(pickle, name)
    def loads(*given, **more):  # find_class is not audited for a pickle of plain values
        found.append([name, [], [frame.filename for frame in traceback.extract_stack()]])
        return original(*given, **more)
    return loads

sys.addaudithook(seen)
for name in ("load", "loads"):
    setattr(pickle, name, refuse(name))
"""
_STORE = """
from pathlib import Path
from ragfm import Collection, Settings
from ragfm.maintenance.salvage import salvage
from ragfm.testing import HashingEmbedder

for kind in ("faiss-flat", "faiss-hnsw"):
    settings = Settings(index=kind)
    collection = Collection.open(f"c-{kind}", settings=settings, embedder=HashingEmbedder())
    collection.sync("docs", tags={"year": 2026}, allow=["staff"])
    Path("docs/new.md").write_text(f"# New\\n\\nIt came for {kind}.\\n")
    collection.sync("docs")
    late = Collection.open(f"c-{kind}", settings=settings, embedder=HashingEmbedder())
    for mode in ("dense", "keyword", "hybrid"):
        assert late.search("days of leave", mode=mode, filter="year = 2026")
    assert late.as_groups({"staff"}).search("leave")
    collection.verify(repair=True)
    collection.compact()
    collection.reembed(HashingEmbedder("other", dim=48))
    collection.backup(f"{kind}.backup")
    restored = Collection.open(f"restored-{kind}", settings=settings, embedder=HashingEmbedder("other", dim=48))
    restored.restore(f"{kind}.backup")
    assert restored.search("leave")
    salvage(collection.store, Path(f"salvaged-{kind}").absolute())
"""
_ASK = """
from ragfm import Collection, Rag
from ragfm.generation.readers import load_reader

collection = Collection.open("c")
collection.sync("docs")
collection.search("days of leave")
Rag(collection).ask("How many days of leave do I get?")
"""


def _events(folder: Path, script: str) -> list[tuple[str, list[str], list[str]]]:
    """What was unpickled, by whom, but for Babel's own data."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAGFM_")} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"{_WATCH}\n{script}\nprint(json.dumps(found))"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events: list[tuple[str, list[str], list[str]]] = json.loads(done.stdout.splitlines()[-1])
    babel = str(Path(babel_core.__file__).parent)
    return [event for event in events if not any(file.startswith(babel) for file in event[2])]


def test_the_audit_hook_detects_a_pickle(tmp_path: Path) -> None:
    script = "import collections; pickle.loads(pickle.dumps(collections.OrderedDict())); pickle.loads(pickle.dumps(1))"
    assert [event[0] for event in _events(tmp_path, script)] == ["loads", "pickle.find_class", "loads"]


def test_the_store_unpickles_nothing(tmp_path: Path, docs: Path) -> None:
    assert _events(tmp_path, _STORE) == []


@pytest.mark.slow
def test_an_answer_unpickles_nothing(tmp_path: Path, docs: Path) -> None:
    assert _events(tmp_path, _ASK) == []


def test_no_module_imports_a_pickling_library() -> None:
    for file in (file for top in ("ragfm", "indexes", "connectors") for file in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            pickling = {name.split(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
            assert not pickling, file
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                assert ast.unparse(node.value) == str(node.arg == "weights_only"), file
            assert not isinstance(node, ast.Attribute) or ast.unparse(node) != "torch.load", file
