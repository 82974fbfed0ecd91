"""npm's `oidc-provider` on loopback, with keys that tests can sign with, and a client that signs in."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from support.free_port import free_port
from support.npm import install

CLIENTS = {"RS256": "ragfm", "ES256": "ragfm-public"}
"""The clients of the page, by the algorithm of their ID tokens. The second one has no secret."""
SECRET = "the secret of the client"
AUDIENCE = "ragfm-api"
USERS = {
    "ann": {"name": "Ann Example", "groups": ["/staff/hr", "hr", "key:guest"]},
    "bob": {"name": "Bob Example", "groups": ["board", "hr"]},
    "robot": {"groups": ["/staff/hr"]},
}
GROUPS = {"/staff/hr": ["hr"]}
"""The mapping of the server: only Ann and the robot are in its group `hr`."""


class SigningKey:
    """A key pair of a provider, or of an attacker."""

    def __init__(self, algorithm: str, kid: str) -> None:
        self.algorithm, self.kid = algorithm, kid
        self.private: Any = (
            rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
        )

    def jwk(self) -> dict[str, Any]:
        jwk: Any = jwt.get_algorithm_by_name(self.algorithm)
        return {**jwk.to_jwk(self.private, as_dict=True), "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        return jwt.encode(claims, self.private, self.algorithm, {"kid": self.kid, **header})


class IdentityProvider:
    """A running provider for a server at a free port. Its issuer and the server have different sites."""

    def __init__(self) -> None:
        self._folder = install(Path(__file__).parents[1] / "server" / "oidc_provider")
        self._port, self.server_port = free_port(), free_port()
        self.issuer = f"http://127.0.0.1:{self._port}"
        self.server = f"http://localhost:{self.server_port}"
        self.start()

    def start(self) -> None:
        """Start it with new keys."""
        self.keys = {name: SigningKey(name, f"{name}-{time.monotonic_ns()}") for name in CLIENTS}
        page = {
            "redirect_uris": [f"{self.server}/signin/callback"],
            "post_logout_redirect_uris": [f"{self.server}/"],
            "grant_types": ["authorization_code"],
        }
        machine = {"redirect_uris": [], "response_types": [], "grant_types": ["client_credentials"]}
        clients = [
            {**page, "client_id": "ragfm", "client_secret": SECRET},
            {**page, "client_id": "ragfm-public", "token_endpoint_auth_method": "none"},
            {**machine, "client_id": "robot", "client_secret": SECRET},
        ]
        for client in clients[:2]:
            client["id_token_signed_response_alg"] = {name: alg for alg, name in CLIENTS.items()}[client["client_id"]]
        keys = [key.jwk() for key in self.keys.values()]
        config = {"port": self._port, "keys": keys, "clients": clients, "users": USERS}
        command = ["node", str(self._folder / "provider.js"), json.dumps(config)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "listening\n"

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of an access token of Ann; those that are None are left out."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 300, **USERS["ann"]}
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def robot_token(self) -> str:
        """An access token that the provider itself has signed, of a program."""
        form = {"grant_type": "client_credentials", "scope": "ask", "resource": "https://ask.example.org"}
        said = httpx.post(f"{self.issuer}/token", data=form, auth=("robot", SECRET), timeout=60)
        token: str = said.json()["access_token"]
        return token


@contextmanager
def running_provider() -> Iterator[IdentityProvider]:
    provider = IdentityProvider()
    try:
        yield provider
    finally:
        provider.stop()


class Browser(httpx.Client):
    """A browser without a screen: its cookies, and the header of the page's requests."""

    def __init__(self, address: str) -> None:
        super().__init__(base_url=address, timeout=60)
        self.page = {"X-Ragfm-Page": "1"}

    def address_of_callback(self, login: str) -> str:
        """Sign in at the provider. Returns the address to which it sends the browser, which is not opened."""
        said = self.get("/signin")
        while True:
            if form := re.search(r'action="([^"]+)"', said.text):
                said = self.post(form[1], data={"prompt": "login", "login": login, "password": "x"})
            elif "/signin/callback" in (address := said.headers["location"]):
                return address
            else:
                said = self.get(said.url.join(address))

    def sign_in(self, login: str) -> httpx.Response:
        return self.get(self.address_of_callback(login))

    def models(self) -> httpx.Response:
        """What the page asks first."""
        return self.get("/v1/models", headers=self.page)
