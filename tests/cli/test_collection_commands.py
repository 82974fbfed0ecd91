"""The commands that maintain a collection, each in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.shell import Shell


@pytest.fixture
def shell(ingested: Shell) -> Shell:
    return ingested


@pytest.mark.slow
def test_sources(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "broken.pdf").write_bytes(b"no pdf")
    shell("ingest", "board", "--allow", "chair", code=3)
    listed = shell.json("sources")
    assert set(listed) == {"sources"}
    docs, board = listed["sources"]
    assert (docs["name"], docs["connector"], docs["location"], docs["documents"]) == ("docs", "files", "docs", 4)
    assert (docs["tags"], docs["exclude"], docs["failures"]) == ({"year": "2026"}, ["*.tmp"], [])
    assert (board["allow"], board["documents"]) == (["chair"], 0)
    assert [failure["uri"] for failure in board["failures"]] == ["board/broken.pdf"]
    text = shell("sources").stdout
    for part in ("docs", "year=2026", "*.tmp", "chair", "broken.pdf", "is not a PDF"):
        assert part in text


def test_sources_show_their_own_failures_and_the_values_of_options(shell: Shell, tmp_path: Path) -> None:
    project, other = tmp_path / "project", tmp_path / "other"
    for folder in (project, other):
        folder.mkdir()
        (folder / f"{folder.name}.pdf").write_bytes(b"no pdf")
    collection = ("-c", project / ".ragfm")
    shell("ingest", project, "--option", "archives=false", *collection, code=3)
    shell("ingest", other, *collection, code=3)
    listed = {source["name"]: source["failures"] for source in shell.json("sources", *collection)["sources"]}
    assert [failure["uri"] for failure in listed["."]] == ["project.pdf"]
    assert [failure["uri"] for failure in listed[str(other)]] == [f"{other}/other.pdf"]
    assert "options   archives=false\n" in shell("sources", *collection).stdout


def test_tags_by_pattern(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "ragfm.toml").write_text('[[tags]]\nmatch = "docs/hours*"\ntags = {team = "office"}\n')
    assert shell.json("ingest")["updated"] == 1
    assert [it["uri"] for it in shell.json("documents", "--filter", "team = office")["documents"]] == ["docs/hours.txt"]
    error = shell.json("search", "leave", "--filter", "taem = hr", code=2)["error"]
    assert (error["type"], error["hint"].startswith("Keys: team, ")) == ("FilterError", True)
    assert shell.json("verify")["findings"] == []


@pytest.mark.slow
def test_documents_outside_have_short_names(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "project"
    folder.mkdir(parents=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "cart.py").write_text("import sys\n\n\ndef total(cart):\n    return sum(cart)\n")
    outside = Shell(folder)
    outside("ingest", tmp_path / "code")
    (hit,) = outside.json("search", "total of a cart", "-k", "1")["hits"]
    assert (hit["uri"], hit["name"], hit["lines"]) == (str(tmp_path / "code" / "cart.py"), "code/cart.py", [4, 5])
    assert "code/cart.py:4-5  total\n" in outside("search", "total of a cart").stdout
    listed = outside("documents").stdout
    assert "code/cart.py" in listed
    assert str(tmp_path) not in listed
    assert outside.json("documents", "code/cart.py")["name"] == "code/cart.py"
    assert outside.json("remove", "code/cart.py")["uri"] == hit["uri"]


def test_remove_a_document(shell: Shell) -> None:
    report = shell.json("remove", "docs/leave.md")
    assert (report["source"], report["uri"], report["documents"]) == ("docs", "docs/leave.md", 1)
    assert shell.json("status")["documents"] == 3
    assert "docs/leave.md" not in shell("search", "days of leave").stdout
    assert shell.json("status")["indexes"][0]["pending"] == 0
    assert shell.json("ingest")["added"] == 1
    said = shell("remove", "docs/leave.md").stdout
    assert "ingest" in said
    assert "--exclude" in said


def test_remove_a_source(shell: Shell, tmp_path: Path) -> None:
    start = time.monotonic()
    report = shell.json("remove", "docs/")
    assert time.monotonic() - start < 15
    assert (report["source"], report["uri"], report["documents"], report["listed"]) == ("docs", None, 4, False)
    assert shell.json("sources") == {"sources": []}
    assert shell.json("status")["chunks"] == 0
    (tmp_path / "ragfm.toml").write_text('[[sources]]\nlocation = "docs"\n')
    assert shell.json("ingest")["added"] == 4
    assert "ragfm.toml" in shell("remove", "docs").stdout
    assert shell.json("verify")["findings"] == []


def test_remove_an_unknown_source(shell: Shell) -> None:
    error = shell.json("remove", "doc/leave.md", code=1)["error"]
    assert "doc/leave.md" in error["message"]
    assert "docs/leave.md" in error["hint"]
    assert "docs" in shell("remove", "dosc", code=1).stderr
    shell("remove", "docs", "-c", "nowhere", code=1)
    assert not (shell.folder / "nowhere").exists()


@pytest.mark.slow
def test_export(shell: Shell, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in shell("export").stdout.splitlines()]
    assert [line["uri"] for line in lines] == [
        "docs/hours.txt",
        "docs/leave.md",
        "docs/pets.markdown",
        "docs/rooms.csv",
    ]
    assert shell("export", "-").stdout == shell("export").stdout
    assert len(shell("export", "--filter", "uri = docs/leave.md").stdout.splitlines()) == 1
    report = shell.json("export", "out.jsonl")
    assert (report["documents"], report["format"], report["path"]) == (4, "jsonl", "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == shell("export").stdout
    shell("export", "--json", code=2)


def test_verify_and_repair(shell: Shell, tmp_path: Path) -> None:
    report = shell.json("verify")
    assert (report["damaged"], report["findings"], report["documents"]) == (False, [], 4)
    (view,) = (tmp_path / ".ragfm" / "views").iterdir()
    (view / "manifest.json").unlink()
    report = shell.json("verify", code=1)
    assert report["damaged"]
    assert set(report["findings"][0]) == {"file", "what", "expected", "found"}
    assert "--repair" in shell("verify", code=1).stdout
    assert "repair: built views/" in shell("verify", "--repair").stdout
    assert shell.json("verify")["damaged"] is False
    shell("verify", "--repair", "--salvage", "x", code=2)
    shell("verify", "-c", "nowhere", code=1)


def test_salvage(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / ".ragfm" / "catalog.db"
    data = bytearray(file.read_bytes())
    place = data.index(b"Dogs are welcome")
    data[place] ^= 1
    file.write_bytes(data)
    said = shell("verify", code=1).stdout
    assert "--salvage OUT" in said
    report = shell.json("verify", "--salvage", "saved", code=1)
    saved = report["salvaged"]
    assert saved["documents"] == len(shell.json("documents", "-c", "saved")["documents"])
    assert saved["documents"] + len(saved["left"]) == 4
    assert "docs/pets.markdown" in {left["uri"] for left in saved["left"]}
    shutil.rmtree(tmp_path / ".ragfm")
    again = shell.json("ingest", "-c", "saved")
    assert again["added"] == len(saved["left"])
    assert shell.json("verify", "-c", "saved")["damaged"] is False


def test_backup_and_restore(shell: Shell, tmp_path: Path) -> None:
    report = shell.json("backup", "b.tar")
    assert (report["documents"], report["generation"]) == (4, shell.json("status")["generation"])
    assert "already exists" in shell("backup", "b.tar", code=1).stderr
    shell("backup", "b.tar", "--force")
    assert "already exists" in shell("restore", "b.tar", code=1).stderr
    done = shell("restore", "b.tar", "-c", "far/away")
    assert "4 documents" in done.stdout
    assert "The location of the source docs does not exist here" in done.stderr
    assert shell("search", "dogs", "-c", "far/away").stdout == shell("search", "dogs").stdout
    data = bytearray((tmp_path / "b.tar").read_bytes())
    data[9000] ^= 1
    (tmp_path / "b.tar").write_bytes(data)
    error = shell.json("restore", "b.tar", "-c", "other", code=1)["error"]
    assert error["type"] == "DamagedCollectionError"
    assert "expected" in error["message"]
    assert not (tmp_path / "other").exists()
    shell("restore", "nothing.tar", code=2)


def test_compact(shell: Shell) -> None:
    shell("remove", "docs/leave.md")
    assert shell.json("status")["indexes"][0]["dead"] > 0
    report = shell.json("compact")
    assert report["documents"] == 1
    assert set(report) == {"chunks", "documents", "vectors", "images", "bytes_before", "bytes_after", "seconds"}
    assert shell.json("status")["indexes"][0]["dead"] == 0
    shell("compact", "-c", "nowhere", code=1)
    assert not (shell.folder / "nowhere").exists()


def test_reembed(shell: Shell, tmp_path: Path) -> None:
    shell.env.pop("RAGFM_EMBEDDER")
    (tmp_path / "ragfm.toml").write_text('embedder = "hashing"\n')
    done = shell("reembed", "--embedder", "hashing:other")
    assert "chunks at generation" in done.stdout
    assert "ragfm.toml" in done.stderr
    assert 'embedder = "hashing:other"' in done.stderr
    (tmp_path / "ragfm.toml").write_text('embedder = "hashing:other"\n')
    again = shell("reembed", "--embedder", "hashing:other")
    assert again.stderr == ""
    shell("reembed", code=2)


def test_status_describes_the_index(shell: Shell) -> None:
    shell("remove", "docs/leave.md")
    text, status = shell("status").stdout, shell.json("status")
    generation = f"of generation {status['generation']}"
    for part in ("checked", generation, "few enough", "of the chunks are dead", "generations from 0 on"):
        assert part in text
    index = status["indexes"][0]
    assert (index["state"], index["floor"], index["wanted"]) == ("checked", 0, "faiss-flat")


def test_an_interrupted_export_leaves_nothing(shell: Shell, tmp_path: Path) -> None:
    code = """
import os, signal
from glob import glob
from ragfm import Collection
from ragfm.cli import main

def interrupted(self, target, *, progress, **options):
    interrupt = lambda _: glob("out.jsonl.*") and os.kill(os.getpid(), signal.SIGINT)
    return export(self, target, progress=interrupt, **options)

export, Collection.export = Collection.export, interrupted
main()
"""
    command = [sys.executable, "-c", code, "export", "--vectors", "out.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, env=shell.env, capture_output=True, text=True)
    assert "Interrupted" in done.stderr
    assert done.returncode == 130
    assert not list(tmp_path.glob("out.jsonl*"))
    assert shell.json("verify")["damaged"] is False
