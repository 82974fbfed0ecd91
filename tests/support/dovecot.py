"""A Dovecot server for tests: Debian's `dovecot-imapd`, from 2.4 on, configured for one mailbox on a free port."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imapclient import IMAPClient

from support.free_port import free_port
from support.website import serve

USER, PASSWORD, TOKEN = "ann@example.org", "c4nary/pass:w0rd@x", "c4nary-t0ken-of-ann"
_SETTINGS = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
info_log_path = {folder}/log
auth_verbose = yes
protocols = imap
listen = 127.0.0.1
ssl = no
auth_allow_cleartext = yes
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {login}
mail_driver = maildir
mail_home = {folder}/mail/%{{user}}
mail_path = ~/Maildir
mail_uid = {user}
mail_gid = {group}
first_valid_uid = 1
mail_plugins {{
  acl = yes
  notify = yes
  mail_log = yes
}}
acl_driver = vfile
auth_mechanisms = plain login xoauth2 oauthbearer
auth_failure_delay = 0
oauth2 {{
  introspection_mode = get
  introspection_url = {introspection}
  username_attribute = email
  active_attribute = active
  active_value = yes
}}
passdb oauth2 {{
  mechanisms_filter = xoauth2 oauthbearer
}}
passdb static {{
  password = {password}
}}
userdb static {{
}}
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Trash {{
    special_use = \\Trash
    auto = create
  }}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
protocol imap {{
  mail_plugins {{
    imap_acl = yes
  }}
  rawlog_dir = {folder}/raw
}}
"""


def why_not() -> str | None:
    """Why there is no server, None if there is one."""
    program = shutil.which("dovecot") or shutil.which("dovecot", path="/usr/sbin")
    if program is None:
        return "Dovecot is not installed (Debian: dovecot-imapd)"
    found = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return None if re.match(r"2\.([4-9]|\d\d)", found) else f"Dovecot {found.strip()} is older than 2.4"


@dataclass
class Mailbox:
    """The mailbox of one user, and what clients have asked the server for."""

    folder: Path
    port: int

    @property
    def location(self) -> str:
        return f"imap://{USER.replace('@', '%40')}:${{MAIL_PASSWORD}}@127.0.0.1:{self.port}"

    @contextmanager
    def client(self) -> Iterator[IMAPClient]:
        with IMAPClient("127.0.0.1", self.port, ssl=False) as client:
            client.login(USER, PASSWORD)
            yield client

    def asked(self) -> list[str]:
        """The commands since the last call, without their tags."""
        lines = []
        for log in sorted((self.folder / "raw").glob("*.in")):
            lines += log.read_bytes().decode("utf-8", "replace").splitlines()
            log.write_bytes(b"")
        return [line.split(" ", 2)[-1] for line in lines]


@contextmanager
def serve_mailbox() -> Iterator[Mailbox]:
    """An empty mailbox of `USER`."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="dovecot") as name, serve() as site:
        folder = Path(name)
        port = free_port()
        root = os.geteuid() == 0
        user = pwd.getpwnam("dovecot") if root else pwd.getpwuid(os.geteuid())
        site.page(
            f"/introspect?token={TOKEN}", json.dumps({"active": "yes", "email": USER}), Content_Type="application/json"
        )
        for part in ("run", "state", "mail", "raw"):
            (folder / part).mkdir()
            os.chown(folder / part, user.pw_uid, user.pw_gid)
        folder.chmod(0o755)
        (folder / "dovecot.conf").write_text(
            _SETTINGS.format(
                folder=folder,
                port=port,
                user=user.pw_name,
                group=grp.getgrgid(user.pw_gid).gr_name,
                login="dovenull" if root else user.pw_name,
                password=PASSWORD,
                introspection=site.url("/introspect?token="),
            )
        )
        program = shutil.which("dovecot") or "/usr/sbin/dovecot"
        command = [program, "-F", "-c", str(folder / "dovecot.conf")]
        with (folder / "out").open("w") as out:
            server = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            mailbox = Mailbox(folder, port)
            for _ in range(600):
                try:
                    with mailbox.client():
                        break
                except (OSError, IMAPClient.Error):
                    time.sleep(0.1)
            else:
                logs = (folder / "out").read_text() + (
                    (folder / "log").read_text() if (folder / "log").exists() else ""
                )
                raise AssertionError(f"Dovecot does not start: {logs}")
            yield mailbox
        finally:
            server.terminate()
            server.wait(60)
