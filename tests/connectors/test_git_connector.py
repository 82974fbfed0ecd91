"""The connector for git repositories, with repositories made by git."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.free_port import free_port
from support.openai_server import wait_until

pytest.importorskip("dulwich", reason="needs the extra git")

from ragfm_connectors import git, git_service
from ragfm_connectors.git import GitConnector
from ragfm_connectors.secrets import check_no_secret, expand, hide, without_user

from ragfm import Collection, Ref
from ragfm.core.errors import ConfigError, ConnectorError, MassDeleteError, SkipDocument, SourceError
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits
from ragfm.testing import check_connector

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


class Work:
    """A repository with a working tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self("init", "-q", "-b", "main")

    def __call__(self, *words: str) -> str:
        env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
        done = subprocess.run(
            ["git", *who, *words], cwd=self.folder, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def write(self, **files: str | None) -> None:
        """Commit files; in their names `__` stands for a slash and `_` for a dot. None removes a file."""
        for name, text in files.items():
            path = self.folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
        self("add", "-A")
        self("commit", "-qm", "change")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    made = Work(tmp_path / "work")
    made.write(readme_md="# Oaks", src__main_py="print('oak')", src__deep__x_rs="fn main() {}", _hidden_md="no")
    return made


def listed(location: Any, **options: Any) -> dict[str, Ref]:
    return {ref.path: ref for ref in GitConnector(location, **options).refs()}


def taken(location: Any, **options: Any) -> list[str]:
    return [path for path, ref in listed(location, **options).items() if ref.skip is None and ref.error is None]


def test_files_of_a_commit(work: Work) -> None:
    (work.folder / "readme.md").write_text("not committed")
    connector = GitConnector(work.folder)
    refs = {ref.path: ref for ref in connector.refs()}
    assert taken(work.folder) == ["readme.md", "src/deep/x.rs", "src/main.py"]
    assert refs["readme.md"].revision == work("rev-parse", "HEAD:readme.md")
    assert refs[".hidden.md"].skip == "hidden"
    assert ".hidden.md" in taken(work.folder, hidden=True)
    assert connector.fetch(refs["readme.md"]).data == b"# Oaks"
    assert connector.fetch(refs["src/main.py"]).metadata == {"language": "python"}
    assert taken(work.folder, include=["*.py", "*.rs"], exclude=["deep"]) == ["src/main.py"]
    check_connector(connector)
    work("gc", "-q")
    check_connector(GitConnector(work.folder))
    bare = work.folder.parent / "bare.git"
    work("clone", "-q", "--bare", ".", str(bare))
    assert listed(bare) == refs


def test_a_commit_is_named_by_ref(work: Work) -> None:
    work("tag", "-a", "v1", "-m", "one")
    first = work("rev-parse", "HEAD")
    work("checkout", "-qb", "feature/x")
    work.write(new_md="new")
    work("checkout", "-q", "main")
    for ref in ("main", "v1", first, "refs/heads/main", "HEAD"):
        assert "new.md" not in taken(work.folder, ref=ref)
    assert "new.md" in taken(work.folder, ref="feature/x")
    with pytest.raises(SourceError, match="no commit 'none'"):
        listed(work.folder, ref="none")
    with pytest.raises(SourceError, match="no git repository"):
        GitConnector(work.folder.parent)


def test_no_program_of_the_repository_is_run(work: Work) -> None:
    canary = work.folder.parent / "canary"
    command = f"touch {canary}"
    for hook in ("post-checkout", "post-merge", "pre-auto-gc", "reference-transaction", "fsmonitor"):
        path = work.folder / ".git/hooks" / hook
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
    for key in (
        "filter.x.smudge",
        "filter.x.clean",
        "filter.x.process",
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "diff.x.textconv",
        "credential.helper",
    ):
        work("config", key, f"!{command}" if key == "credential.helper" else command)
    (work.folder / ".gitattributes").write_text("* filter=x diff=x\n")
    work("-c", "filter.x.clean=cat", "-c", "filter.x.process=", "-c", "core.fsmonitor=", "add", "-A")
    canary.unlink(missing_ok=True)
    check_connector(GitConnector(work.folder, hidden=True))
    assert not canary.exists()


def test_only_the_storage_settings_of_the_configuration_are_read(work: Work) -> None:
    for key, value in (("core.bigFileThreshold", "50m"), ("pack.windowMemory", "1g"), ("core.worktree", "/nowhere")):
        work("config", key, value)
    canary = work.folder.parent / "canary"
    canary.write_text("a secret that is no configuration\n")
    work("config", "include.path", str(canary))
    assert taken(work.folder) == ["readme.md", "src/deep/x.rs", "src/main.py"]
    config = work.folder / ".git/config"
    before = config.read_text()
    for more, said in (
        ("[extensions]\n\tpartialClone = origin\n", "unsupported storage format: .*partial"),
        ("[core]\n\trepositoryformatversion = 9\n", "unsupported storage format: "),
        ("a secret\n", "cannot be opened: its configuration is invalid"),
    ):
        config.write_text(more if more == "a secret\n" else before + more)
        with pytest.raises(SourceError, match=said) as caught:
            GitConnector(work.folder)
        assert "secret" not in str(caught.value)


def test_a_repository_with_sha_256_is_not_supported(work: Work) -> None:
    work("init", "-q", "--object-format=sha256", "other")
    with pytest.raises(SourceError, match="unsupported storage format: objectFormat = sha256"):
        GitConnector(work.folder / "other")


def test_no_program_of_the_user_configuration_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text(f"[core]\n\tsshCommand = touch {tmp_path}/canary;\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with pytest.raises(SourceError, match="cannot be fetched"):
        listed("ssh://git@127.0.0.1:1/x")
    assert not (tmp_path / "canary").exists()


def test_skipped_entries_have_reasons(work: Work) -> None:
    other = Work(work.folder.parent / "other")
    other.write(a_md="a")
    work("submodule", "--quiet", "add", str(other.folder), "sub")
    (work.folder / "link.md").symlink_to("/etc/passwd")
    work.write(lfs_bin="version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", big_md="x" * 99)
    connector = GitConnector(work.folder, max_bytes=98)
    refs = {ref.path: ref for ref in connector.refs()}
    assert "submodule" in (refs["sub"].skip or "")
    assert refs["link.md"].skip == "symbolic link"
    with pytest.raises(SkipDocument, match="git-lfs"):
        connector.fetch(refs["lfs.bin"])
    with pytest.raises(SkipDocument, match="the limit is 98"):
        connector.fetch(refs["big.md"])
    check_connector(connector)


def test_access_files_of_the_commit_apply(work: Work) -> None:
    (work.folder / "src/.ragfm-access").write_text("dev\n")
    (work.folder / "src/deep/.ragfm-access").write_text("ops\n")
    work.write()
    found = listed(work.folder)
    assert [found[path].allow for path in ("readme.md", "src/main.py", "src/deep/x.rs")] == [None, ("dev",), ()]
    (work.folder / "src/.ragfm-access").write_bytes(b"\xff")
    work.write()
    found = listed(work.folder)
    assert found["src/main.py"].allow == ()
    assert "not UTF-8" in (found["src/.ragfm-access"].error or "")


def test_odd_names(work: Work) -> None:
    for name in (b"caf\xe9.md", "ünï ☃.md".encode(), b"a:b.md", b"two\nlines.md"):
        Path(os.fsdecode(os.fsencode(work.folder) + b"/" + name)).write_text("x")
    work.write()
    found = listed(work.folder)
    assert found[r"caf\xe9.md"].skip == "its name is not UTF-8"
    assert {"ünï ☃.md", "a:b.md", "two\nlines.md"} <= set(taken(work.folder))
    check_connector(GitConnector(work.folder))


def test_trees_in_trees_cost_little(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(tree: str) -> None:
        work("reset", "-q", "--soft", work("commit-tree", "-m", "x", tree))

    def tree_of(*entries: str) -> str:
        done = subprocess.run(
            ["git", "mktree"], cwd=work.folder, input="\n".join(entries), capture_output=True, text=True
        )
        return done.stdout.strip()

    entry = f"100644 blob {work('rev-parse', 'HEAD:readme.md')}\tf.md"
    deep = tree_of(entry)
    for _ in range(300):
        deep = tree_of(f"040000 tree {deep}\tin")
    commit(deep)
    (left,) = GitConnector(work.folder).refs()
    assert left.skip == "it lies over 200 folders deep"
    bomb = tree_of(entry)
    for _ in range(10):
        bomb = tree_of(*(f"040000 tree {bomb}\tin{number}" for number in range(10)))
    commit(bomb)
    monkeypatch.setattr(git, "_MAX_ENTRIES", 1000)
    with pytest.raises(SourceError, match="over 1,000 files"):
        listed(work.folder)
    with pytest.raises(SourceError, match="over 1,000 files"):
        listed(work.folder, include=["none.md"])


def test_trees_that_lead_out_are_refused(work: Work) -> None:
    blob = work("rev-parse", "HEAD:readme.md")
    tree = b"100644 ..\0" + bytes.fromhex(blob)
    made = (
        subprocess.run(
            ["git", "hash-object", "-t", "tree", "-w", "--stdin", "--literally"],
            cwd=work.folder,
            input=tree,
            check=True,
            capture_output=True,
        )
        .stdout.decode()
        .strip()
    )
    work("update-ref", "refs/heads/evil", work("commit-tree", made, "-m", "evil"))
    with pytest.raises(SourceError, match="not a valid path"):
        listed(work.folder, ref="evil")


def test_sync_adds_changes_and_deletes(work: Work, collection: Collection) -> None:
    assert collection.sync(work.folder, connector="git").added == 3
    assert collection.sync().unchanged == 3
    work.write(readme_md="# Elms", src__deep__x_rs=None, new_md="new")
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 1, 1)
    assert collection.search("elms", mode="keyword", filter="language = python") == []
    work("rm", "-q", "src/main.py", "readme.md")
    work.write()
    with pytest.raises(MassDeleteError):
        collection.sync(work.folder)


def test_objects_that_unpack_to_much_are_read_in_a_process_with_limited_memory(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.folder / "zeros.txt").write_bytes(bytes(160 << 20))
    work.write()
    work("gc", "-q")
    size = sum(file.stat().st_size for file in (work.folder / ".git").rglob("*") if file.is_file())
    assert size < 1 << 20
    limits = Limits(memory=64 << 20, model_memory=64 << 20)
    monkeypatch.setattr(git_service, "ConfinedService", partial(ConfinedService, limits=limits))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connector = GitConnector(work.folder, max_bytes=1 << 30)
    refs = {ref.path: ref for ref in connector.refs()}
    with pytest.raises(ConnectorError, match=r"its process needs over 0\.0625 GiB of memory"):
        connector.fetch(refs["zeros.txt"])
    assert connector.fetch(refs["readme.md"]).data == b"# Oaks"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_objects_shared_with_another_repository_and_a_second_working_tree_are_read(work: Work, tmp_path: Path) -> None:
    work("clone", "-q", "--shared", str(work.folder), str(tmp_path / "shared"))
    work("worktree", "add", "-q", str(tmp_path / "second"))
    files = ["readme.md", "src/deep/x.rs", "src/main.py"]
    assert taken(tmp_path / "shared") == taken(tmp_path / "second") == taken(work.folder) == files
    connector = GitConnector(tmp_path / "shared")
    assert [connector.fetch(ref).data for ref in connector.refs() if ref.path == "readme.md"] == [b"# Oaks"]


def test_a_repository_that_goes_away_in_the_middle(work: Work, collection: Collection) -> None:
    collection.sync(work.folder, connector="git")
    tree, blob = work("rev-parse", "HEAD:src/deep"), work("rev-parse", "HEAD:readme.md")
    (work.folder / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(SourceError, match="damaged"):
        collection.sync(work.folder)
    connector = GitConnector(work.folder, exclude=["src"])
    (ref, *_) = [ref for ref in connector.refs() if ref.path == "readme.md"]
    (work.folder / ".git/objects" / blob[:2] / blob[2:]).write_bytes(b"\x78\x01rubbish")
    with pytest.raises(ConnectorError, match=r"readme\.md"):
        connector.fetch(ref)
    shutil.rmtree(work.folder / ".git")
    with pytest.raises(SourceError):
        collection.sync(work.folder)
    assert len(collection.documents()) == 3


# --- Remote repositories -----------------------------------------------------------------------------------------


@pytest.fixture
def served(work: Work) -> Iterator[str]:
    """The repository, served by git's own daemon."""
    port = free_port()
    command = [
        "git",
        "daemon",
        "--export-all",
        "--reuseaddr",
        f"--base-path={work.folder.parent}",
        "--listen=127.0.0.1",
        f"--port={port}",
    ]

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(listens)
        yield f"git://127.0.0.1:{port}/work"
    finally:
        daemon.terminate()
        daemon.wait()


def test_a_repository_elsewhere(work: Work, served: str, collection: Collection) -> None:
    work("tag", "v1")
    assert listed(served) == listed(work.folder)
    check_connector(GitConnector(served))
    assert collection.sync(served, connector="git").added == 3
    work.write(new_md="new")
    assert collection.sync(served).added == 1
    assert collection.documents()[-1].uri == f"{served}/src/main.py"
    assert "new.md" not in taken(served, ref="v1")
    with pytest.raises(SourceError, match="has no 'none'"):
        listed(served, ref="none")
    shutil.rmtree(work.folder / ".git")
    with pytest.raises(SourceError, match="cannot be fetched"):
        collection.sync(served)
    assert len(collection.documents()) == 4


def test_secrets_of_an_address_are_neither_stored_nor_shown(
    served: str, collection: Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GIT_TOKEN", "s3cr3t/pässword")
    location = served.replace("git://127", "http://me:${GIT_TOKEN}@127")
    with caplog.at_level(0), pytest.raises(SourceError) as caught:
        collection.sync(location.replace("http://me", "http://${GIT_TOKEN}"), connector="git")
    said = f"{caught.value!r} {caught.value} {caplog.text} {GitConnector(location.replace('me:', '${A}:')).__dict__}"
    assert not [form for form in ("s3cr3t", "ssword") if form in said]
    for wrong in ("https://me:abcdefg@host/x", "https://ghp_abcdefg@host/x", "ssh://git:abcdefg@host/x"):
        with pytest.raises(ConfigError) as refused:
            GitConnector(wrong)
        assert "abcdefg" not in str(refused.value)
    with pytest.raises(ConfigError, match="is not supported for repositories"):
        GitConnector("file:///etc")
    GitConnector("ssh://git@host/x")


def test_variables_in_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "a/b@c:d")
    assert expand("x://u:${PW}@h") == "x://u:a%2Fb%40c%3Ad@h"
    assert expand("${PW}", quoted=False) == "a/b@c:d"
    with pytest.raises(ConfigError, match="NONE"):
        expand("${NONE}")
    assert hide("bad a/b@c:d or a%2Fb%40c%3Ad", "x://${PW}") == "bad ${PW} or ${PW}"
    assert without_user("x://u:${PW}@h/p@q") == "x://h/p@q"
    check_no_secret("x://u:${PW}@h?password=${PW}&key=${PW}")
    for wrong in ("x://h/p?password=abc", "x://h?api_key=abc", "x://u:a${PW}@h", "x://h?sslpassword=abc"):
        with pytest.raises(ConfigError, match="contains a secret"):
            check_no_secret(wrong)
