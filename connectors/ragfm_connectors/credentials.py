"""Files that look like credentials: they grant access to something, and a search must not show them by accident.

The names are those of files that contain nothing else. Contents are searched for private keys, password hashes and
access tokens whose format is unmistakable, in files that are small enough to be a credential.
"""

from __future__ import annotations

import re

_MAX_BYTES = 256 << 10
_NAMES = re.compile(
    r"""(?:
        g?shadow-? | \.?credentials(?:\.json|\.csv)? | client_secret.*\.json | service[-_]account.*\.json
        | (?:.+)?\.env(?:\.(?!example$|sample$|template$|dist$)[^.]+)? | id_[a-z0-9_]+
        | [._]netrc | \.pgpass | pgpass\.conf | \.git-credentials | \.npmrc | \.pypirc | \.dockercfg | \.htpasswd
        | \.my\.cnf | \.?vault-token | tokens? | .+\.(?:token|p12|pfx|jks|keystore|kdbx|ppk)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_CONTENTS = {
    "a private key": re.compile(
        rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s+(?:[\w-]+: [^\n]*\s+)*[A-Za-z0-9+/=]{40}"
        rb"|\APuTTY-User-Key-File-\d"
    ),
    "a password hash": re.compile(rb"(?m)^[\w.-]+:\$(?:1|2[aby]|5|6|7|y|gy|apr1)\$[^:\s]{8,}(?=:|\s|\Z)"),
    "a password": re.compile(rb"(?m)^machine\s+\S+\s+login\s+\S+\s+password\s+\S"),
    "an access token": re.compile(
        rb"\b(?:(?:AKIA|ASIA)(?!\w*EXAMPLE)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60}|glpat-[\w-]{20}"
        rb"|xox[abeprs]-[\w-]{20}|AIza[\w-]{35}|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{40})"
    ),
}


def credential_by_name(name: str) -> str | None:
    """Why a file with this name is skipped, None if it is not."""
    return _reason("its name") if _NAMES.fullmatch(name) else None


def credential_by_content(data: bytes) -> str | None:
    """Why a file with this content is skipped, None if it is not."""
    if len(data) <= _MAX_BYTES:
        for what, pattern in _CONTENTS.items():
            if pattern.search(data):
                return _reason(f"it contains {what}")
    return None


def _reason(why: str) -> str:
    return f"it looks like a credential ({why}); to ingest it, select it with --include"
