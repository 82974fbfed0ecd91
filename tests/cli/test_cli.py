"""The command line in a process of its own: exit codes, JSON, and one clear line per error."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.shell import HIT_KEYS, InProcessShell, Shell
from support.torture.full_disk import small_disk

from ragfm import Collection
from ragfm.cli.main import SECTIONS


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_ingest_search_status_documents(shell: Shell, docs: Path) -> None:
    report = shell.json("ingest", "docs")
    counts = {"added", "updated", "removed", "unchanged", "chunks"}
    assert set(report) == counts | {"seconds", "skipped", "failed", "unmapped", "commit"}
    assert (report["added"], report["failed"], report["skipped"]) == (4, [], [])
    assert shell.json("ingest", "docs")["chunks"] == 0
    assert shell.json("ingest")["unchanged"] == 4

    results = shell.json("search", "you get 28 days of leave", "-k", "2")
    assert set(results) == {"query", "hits", "searches"}
    assert [step["round"] for step in results["searches"]] == [1]
    assert results["query"] == "you get 28 days of leave"
    assert len(results["hits"]) == 2
    assert set(results["hits"][0]) == HIT_KEYS
    assert results["hits"][0]["uri"] == "docs/leave.md"
    assert set(results["hits"][0]["scores"]) == {"dense", "keyword", "fused"}
    for hit in results["hits"]:
        text = shell.json("documents", hit["uri"])["text"]
        assert text[hit["start"] : hit["end"]] == hit["text"]

    status = shell.json("status")
    keys = "answered_guarantee chunks documents embedder failed generation guarantee image_bytes"
    keys += " images indexes older parsers sources"
    assert sorted(status) == keys.split()
    assert (status["documents"], status["embedder"]["model"], status["sources"][0]["name"]) == (4, "hashing", "docs")
    assert len(shell.json("documents")["documents"]) == 4
    assert shell.json("documents", "--filter", "source = nothing")["documents"] == []


def test_plain_text_output(shell: Shell, docs: Path) -> None:
    assert "4 added, 0 updated, 0 removed" in shell("ingest", "docs").stdout
    assert "docs/leave.md:1-3  Leave" in shell("search", "28 days of leave").stdout
    assert "4 documents" in shell("status").stdout
    assert re.search(r"docs/rooms.csv +text/csv", shell("documents").stdout)
    assert shell("documents", "docs/hours.txt").stdout.startswith("The office opens at nine")
    assert "faiss-flat" in shell("plugins").stdout
    assert shell("--version").stdout.startswith("ragfm, version ")


def test_options_of_ingest(shell: Shell, docs: Path) -> None:
    patterns = ("--include", "*.md", "--include", "*.txt", "--exclude", "hours*")
    shell("ingest", "docs", "--name", "d", *patterns, "--tag", "year=2026", "--tag", "team=hr")
    assert [info["uri"] for info in shell.json("documents", "--filter", "year >= 2026 and team=hr")["documents"]] == [
        "d/leave.md"
    ]
    assert shell.json("ingest", "docs", "--allow", "staff")["unchanged"] == 1
    assert shell.json("status")["sources"][0]["allow"] == ["staff"]


def test_the_folder_is_set_by_option_or_environment(shell: Shell, docs: Path) -> None:
    shell("ingest", "docs", "-c", "elsewhere/c")
    assert (shell.folder / "elsewhere" / "c" / "catalog.db").exists()
    shell.env["RAGFM_COLLECTION"] = "elsewhere/c"
    assert shell.json("status")["documents"] == 4


def test_a_failed_document_is_code_3_and_the_others_are_ingested(shell: Shell, docs: Path) -> None:
    (docs / "fake.pdf").write_text("Hello, I am not a PDF.")
    os.utime(docs / "fake.pdf", (1e9, 1e9))  # long enough ago that its time tells of a change
    (docs / "empty.txt").touch()
    report = shell.json("ingest", "docs", code=3)
    assert report["added"] == 4
    (failure,) = report["failed"]
    keys = ("uri", "stage", "attempts", "stale")
    assert tuple(failure[key] for key in keys) == ("docs/fake.pdf", "parse", 1, False)
    assert "PDF" in failure["error"]
    assert [skip["uri"] for skip in report["skipped"]] == ["docs/empty.txt"]
    lines = shell("ingest", "docs", code=3).stderr.splitlines()
    assert [line for line in lines if "fake.pdf" in line and "is not a PDF" in line]
    assert shell.json("status")["failed"][0]["attempts"] == 2


def test_known_failures_can_be_tolerated(shell: Shell, docs: Path) -> None:
    (docs / "fake.pdf").write_text("Hello, I am not a PDF.")
    os.utime(docs / "fake.pdf", (1e9, 1e9))
    words = ("ingest", "docs", "--tolerate-failed")
    assert [failure["known"] for failure in shell.json(*words, code=3)["failed"]] == [False]
    for retry in ((), ("--retry",)):
        assert [failure["known"] for failure in shell.json(*words, *retry)["failed"]] == [True]
    (docs / "fake.pdf").write_text("Hello, I am no PDF either.")
    os.utime(docs / "fake.pdf", (1.1e9, 1.1e9))
    shell(*words, code=3)
    shell(*words)
    (docs / "other.pdf").write_text("Hello, I am not a PDF.")
    shell(*words, code=3)
    shell("ingest", "docs", code=3)


def test_a_source_that_cannot_be_read_is_never_tolerated(shell: Shell, docs: Path) -> None:
    shell("ingest", "docs", "--tolerate-failed")
    docs.rename(docs.with_name("gone"))
    for _ in range(2):
        shell("ingest", "--tolerate-failed", code=3)


WRONG = {
    "no such path": (["ingest", "missing"], 1, "missing"),
    "no source": (["ingest"], 1, "no source"),
    "no collection": (["search", "x", "-c", "nowhere"], 1, "no collection at"),
    "unknown connector": (["ingest", "docs", "--connector", "carrier-pigeon"], 1, "carrier-pigeon"),
    "unknown embedder": (["ingest", "docs", "--embedder", "./no-model"], 1, "no-model"),
    "unknown embedder plugin": (["ingest", "docs", "--embedder", "nope:x"], 1, "nope"),
    "unknown command": (["inhale"], 2, "inhale"),
    "unknown option": (["search", "x", "--fast"], 2, "--fast"),
    "wrong number": (["search", "x", "-k", "0"], 2, "-k"),
    "wrong mode": (["search", "x", "--mode", "psychic"], 2, "psychic"),
    "empty query": (["search", " "], 2, "The query is empty"),
    "empty question": (["ask", " "], 2, "The question is empty"),
    "empty source": (["ingest", ""], 2, "empty"),
    "empty collection": (["ingest", "docs", "-c", ""], 2, "empty"),
    "empty group": (["ingest", "docs", "--allow", ""], 2, "empty"),
    "a path that cannot be written": (["demo", "/proc/nowhere"], 1, "No such file"),
    "wrong tag": (["ingest", "docs", "--tag", "year"], 2, "KEY=VALUE"),
    "infinite number": (["keys", "add", "ann", "--rate", "inf"], 2, "inf is not a finite number"),
    "not a number": (["watch", "--interval", "nan"], 2, "nan is not a finite number"),
    "too long a time": (["log", "forget", "--older-than", "999999"], 2, "--older-than"),
    "not UTF-8": (["search", "caf\udce9"], 2, "The argument caf\\xe9 is not UTF-8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(shell: Shell, docs: Path, case: str) -> None:
    words, code, part = WRONG[case]
    done = shell(*words, code=code)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr
    error = shell.json(*words, code=code)
    assert set(error) == {"error"}
    assert set(error["error"]) == {"type", "message", "hint"}
    assert part in error["error"]["message"]
    assert not (shell.folder / ".ragfm").exists()


WRONG_LATER = {
    "another embedder": (["ingest", "docs", "--embedder", "bundled"], "ragfm reembed --embedder bundled"),
    "unknown reader": (["ask", "x", "--reader", "./missing.gguf"], "missing.gguf"),
    "unknown reader plugin": (["ask", "x", "--reader", "nope:x"], "nope"),
    "overlap": (["ingest", "docs/leave.md"], "overlaps"),
    "no such document": (["documents", "docs/nothing.md"], "docs/nothing.md"),
    "too long a query": (["search", "word " * 500], "tokens"),
}


@pytest.mark.parametrize("case", WRONG_LATER)
def test_wrong_input_to_a_collection(ingested: Shell, case: str) -> None:
    words, part = WRONG_LATER[case]
    lines = ingested(*words, code=1).stderr.strip().splitlines()
    assert len(lines) == 1
    assert part in lines[0]
    assert Collection.open(ingested.folder / ".ragfm", embedder="hashing").status().documents == 4


def test_a_wrong_key_in_the_settings_is_named(shell: Shell, docs: Path) -> None:
    (shell.folder / "ragfm.toml").write_text("[chunk]\nseize = 3\n")
    assert "chunk.seize" in shell("ingest", "docs", code=1).stderr


def test_an_empty_folder_is_a_warning(shell: Shell) -> None:
    (shell.folder / "empty").mkdir()
    done = shell("ingest", "empty")
    assert "contains no document" in done.stderr
    assert "0 added" in done.stdout
    assert shell.json("search", "anything")["hits"] == []


@pytest.mark.slow
def test_a_corrupt_view_is_rebuilt_and_reported(shell: Shell, docs: Path) -> None:
    shell("ingest", "docs")
    expected = shell.json("search", "28 days of leave")
    (view,) = (shell.folder / ".ragfm" / "views").iterdir()
    (view / "vectors" / "index.faiss").write_bytes(b"\0" * 100)
    done = shell("search", "28 days of leave", "--json")
    assert json.loads(done.stdout) == expected
    assert "index.faiss" in done.stderr
    assert "is damaged" in done.stderr
    shell("ingest")
    assert shell("search", "28 days of leave", "--json").stderr == ""


@pytest.mark.slow
def test_a_read_only_mount_still_answers(shell: Shell, docs: Path) -> None:
    shell("ingest", "docs")
    place = shell.folder / "mounted"
    place.mkdir()
    mount = ["mount", "--bind", str(shell.folder / ".ragfm"), str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user can't mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        hits = shell.json("search", "28 days of leave", "-c", place)
        assert hits == shell.json("search", "28 days of leave")
        assert shell.json("status", "-c", place)["documents"] == 4
        error = shell.json("ingest", "docs", "-c", place, code=1)["error"]
        assert error["type"] == "CollectionReadOnlyError"
        assert "read-only" in error["message"]
        shell("ingest", "docs", "-c", place / "new", code=1)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_an_interrupted_ingest_continues(shell: Shell) -> None:
    folder = shell.folder / "many"
    folder.mkdir()
    for number in range(600):  # a commit has up to 500
        (folder / f"{number:04}.txt").write_text(f"Document number {number}.")
    code = """
import os, signal
from ragfm.cli import main
from ragfm.store.catalog_writer import CatalogWriter

def interrupted(*given):
    generation = commit(*given)
    os.kill(os.getpid(), signal.SIGINT)
    return generation

commit, CatalogWriter.commit = CatalogWriter.commit, interrupted
main()
"""
    command = [sys.executable, "-c", code, "ingest", "many"]
    done = subprocess.run(command, cwd=shell.folder, env=shell.env, capture_output=True, text=True)
    assert done.returncode == 130
    assert "Interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert shell.json("status")["documents"] == 500
    report = shell.json("ingest", "many")
    assert (report["added"], report["unchanged"]) == (100, 500)


def test_a_wrong_filter_is_wrong_usage(ingested: Shell) -> None:
    assert "year =" in ingested("search", "x", "--filter", "year =", code=2).stderr
    assert ingested.json("search", "x", "--filter", "year =", code=2)["error"]["type"] == "FilterError"


def test_hops_and_reranking_exclude_each_other(ingested: Shell) -> None:
    assert "--hops" in ingested("search", "lamp", "--hops", "2", "--rerank", "auto", code=2).stderr
    assert ingested.json("search", "lamp", "--hops", "2", "--rerank", "none")["hits"]


def test_a_missing_source_is_code_3_and_the_others_are_synced(shell: Shell, docs: Path) -> None:
    (shell.folder / "more").mkdir()
    (shell.folder / "more" / "a.txt").write_text("More.")
    shell("ingest", "docs", "more", "docs")
    shutil.rmtree(shell.folder / "more")
    report = shell.json("ingest", code=3)
    assert (report["unchanged"], report["failed"][0]["uri"]) == (4, "more")
    assert "No such" not in shell("status").stdout


def test_documents_do_not_steer_the_terminal(shell: Shell, docs: Path) -> None:
    (docs / "evil\nname.txt").write_text("A lamp \x1b]0;PWNED\x07\x1b[31m and \x9b31m more.")
    shell("ingest", "docs")
    for words in (["search", "lamp"], ["documents"], ["documents", "docs/evil\nname.txt"]):
        shown = shell(*words).stdout
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert "\\x1b]0;PWNED" in shell("search", "lamp").stdout
    (docs.parent / "\x1b[31mempty").mkdir()
    warning = shell("ingest", "\x1b[31mempty").stderr
    assert "Warning: The source \\x1b[31mempty contains no document" in warning
    assert len(shell("documents").stdout.splitlines()) == 1 + 5


def test_output_that_cannot_be_written_is_one_line(ingested: Shell) -> None:
    for option, unbuffered in (("", "1"), ("--json", "")):
        command = f"{sys.executable} -c 'from ragfm.cli import main; main()' documents {option} > /dev/full"
        env = ingested.env | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            ["bash", "-c", command], cwd=ingested.folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert "No space left" in done.stderr


def test_a_read_only_file_system_is_an_access_error(shell: Shell, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with ExitStack() as mounts:
        try:
            mounts.enter_context(small_disk(disk))
        except OSError as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        error = shell.json("keys", "add", "ann", "--keys", disk / "keys.json", code=1)["error"]
    assert (error["type"], "Read-only file system" in error["message"]) == ("AccessDeniedError", True)


def test_an_error_of_the_system_says_what_failed_and_what_to_check(shell: Shell) -> None:
    (shell.folder / "ragfm-demo").symlink_to("nowhere")
    said = shell("demo", code=1).stderr
    assert re.search("Access to '.*ragfm-demo' failed: File exists", said)
    assert "Check the path, its permissions and the free space." in " ".join(said.split())


def test_a_question_that_fails_does_not_end_the_chat(ingested: Shell) -> None:
    done = ingested("chat", typed="word " * 100 + "\n/nonsense\n/sources\n/quit\n")
    assert "100 tokens" in done.stderr
    assert re.search(r"/sources \[N\] +show the passages", done.stdout)


def test_without_a_command_there_is_help(shell: Shell) -> None:
    assert "Usage: " in shell().stdout


def test_every_command_has_help(shell: Shell) -> None:
    listed = shell("--help").stdout
    for title, commands in SECTIONS.items():
        assert f"\n{title}:\n" in listed
        for command in commands:
            assert re.search(rf"^  {command.name} +\w", listed, re.M)
            assert "Usage: " in InProcessShell()(str(command.name), "--help")
    assert "..." not in listed.partition("Use:")[2]  # no description is cut


def test_a_closed_pipe_is_not_an_error(ingested: Shell) -> None:
    command = f"{sys.executable} -c 'from ragfm.cli import main; main()' documents | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ingested.folder, env=ingested.env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process change its command line")
@pytest.mark.parametrize(
    "command",
    [
        ["copy", "postgresql://me@{server}/db?collection=c&password=s3cret", "postgresql://me:s3cret@{server}/other"],
        [
            "serve",
            "--no-auth",
            "-c",
            "a=postgresql://me:s3cret@{server}/db",
            "-c",
            "b=postgresql://me:s3cret@{server}/db",
        ],
    ],
)
def test_the_command_line_does_not_show_passwords(command: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        place = f"127.0.0.1:{server.getsockname()[1]}"
        words = [word.format(server=place) for word in command]
        process = subprocess.Popen([sys.executable, "-m", "ragfm", *words], cwd=tmp_path, stderr=subprocess.PIPE)
        try:
            server.accept()[0].close()  # it connects, so it has read its arguments
            shown, variables = (Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        finally:
            process.kill()
            process.communicate()
    assert shown.count(b"******") == 2
    assert b"s3cret" not in shown + variables
