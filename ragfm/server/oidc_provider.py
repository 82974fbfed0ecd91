"""A provider of OpenID Connect: its keys, the tokens that it has signed, and the users that they name.

token ─→ key of the JWKS by `kid` ─→ signature, issuer, audience, times ─→ claims ─→ User

A token is checked here; the provider is asked only for its keys.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Mapping
from http.client import HTTPException
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, quote_plus, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import jwt
from jwt.types import Options
from pydantic import ValidationError

from ragfm import __version__
from ragfm.core.config import OidcSection
from ragfm.core.errors import ConfigError
from ragfm.server.api_errors import ApiError
from ragfm.server.api_keys import User
from ragfm.server.json_logging import log_event

_ALGORITHMS = ("RS256", "ES256")
_TYPES = (None, "jwt", "at+jwt", "application/at+jwt")  # else it may be a token for a sign-out, for instance
_SKEW_SECONDS = 60
_KEYS_SECONDS = 300.0  # after which keys are fetched again: the provider may have withdrawn one
_RETRY_SECONDS = 30.0  # between two attempts, whatever tokens come
_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 2**20
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_log = logging.getLogger(__name__)


class ProviderError(Exception):
    """The provider cannot be reached, or its response is not what it should be."""


class OidcProvider:
    """The provider of the settings. Belongs to one event loop. Raises ConfigError for settings that cannot work."""

    def __init__(self, settings: OidcSection) -> None:
        self.issuer = settings.issuer or ""
        self.endpoints: Mapping[str, Any] = {}
        """The provider's own description of itself; empty until it was fetched."""
        self.settings = settings
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = float("-inf")
        self._lock = asyncio.Lock()
        if not _is_safe(self.issuer):
            raise ConfigError(
                f"The issuer {self.issuer!r} is not an address with https://.",
                "Use the `issuer` of its /.well-known/openid-configuration.",
            )
        try:
            self.user({settings.user_claim: "x", settings.groups_claim: list(settings.groups)})
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ConfigError(f"`server.oidc.groups` has a group that is not valid: {problem}.") from error

    def user(self, claims: Mapping[str, Any]) -> User:
        """The user of verified claims. Raises ApiError if they name none."""
        settings, subject = self.settings, claims.get(self.settings.user_claim)
        if not isinstance(subject, str) or not subject.strip():
            raise _refused(f"it has no claim {settings.user_claim!r}")
        groups = {group for value in self.known_groups(claims) for group in settings.groups[value]}
        labels = (claims.get(name) for name in ("name", "preferred_username", "email"))
        return User(
            # Unique in all collections, whatever other providers call their users: an escaped subject has no colon.
            name=f"{self.issuer.partition('://')[2]}:{quote(subject, safe='@')}",
            label=next((label for label in labels if isinstance(label, str) and label), subject)[:100],
            groups=tuple(sorted(groups)),
            per_minute=settings.rate,
            uploads_mb=settings.uploads_mb,
            scopes=tuple(settings.scopes),
        )

    def known_groups(self, claims: Mapping[str, Any]) -> list[str]:
        """Those values of the groups claim that give access groups."""
        claim = claims.get(self.settings.groups_claim)
        values = claim if isinstance(claim, list) else [claim]
        return [value for value in self.settings.groups if value in values]

    async def claims(self, token: str, audience: str) -> dict[str, Any]:
        """The claims of a token for the audience. Raises ApiError if it is not valid or cannot be checked."""
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(header.get("kid", ""))
            if key is None:
                raise _refused("none of the issuer's keys has signed it")
            if str(header.get("typ", "JWT")).lower() not in _TYPES:
                raise _refused(f"its type is {header['typ']!r}")
            checks: Options = {"require": ["exp", "iat", "iss", "aud"]}
            return jwt.decode(
                token, key, list(_ALGORITHMS), checks, issuer=self.issuer, audience=audience, leeway=_SKEW_SECONDS
            )
        except jwt.ExpiredSignatureError as error:
            raise ApiError(401, "The token has expired.", code="expired_token") from error
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _refused(str(error)) from error

    async def redeem(self, code: str, verifier: str, redirect_uri: str) -> dict[str, Any]:
        """The tokens for a code of this client. Raises ApiError if there are none."""
        client, secret = self.settings.client_id, self.settings.client_secret
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier, "client_id": client}
        headers = {}
        if secret is not None:
            basic = f"{quote_plus(client)}:{quote_plus(secret.get_secret_value())}"
            headers["Authorization"] = f"Basic {base64.b64encode(basic.encode()).decode()}"
        form["redirect_uri"] = redirect_uri
        await self.ready()
        try:
            return await asyncio.to_thread(_fetch, self.endpoints["token_endpoint"], urlencode(form).encode(), headers)
        except ProviderError as error:
            raise ApiError(400, str(error), code="sign_in_failed") from error

    async def ready(self) -> None:
        """Fetch the provider's endpoints and keys if they are not known yet. Raises ApiError if that fails."""
        if not self.endpoints:
            await self.refresh()
        if not self.endpoints:
            message = "The identity provider cannot be reached. Try again later, or use a key."
            raise ApiError(503, message, code="sign_in_unavailable", retry_after=int(_RETRY_SECONDS))

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        if kid not in self._keys or monotonic() - self._fetched > _KEYS_SECONDS:
            await self.refresh()
            await self.ready()
        return self._keys.get(kid)

    async def refresh(self) -> None:
        """Fetch endpoints and keys, unless that was just tried. After a failure, those from before stay valid."""
        async with self._lock:
            if monotonic() - self._tried < _RETRY_SECONDS:
                return
            self._tried = monotonic()
            try:
                self.endpoints, self._keys = await asyncio.to_thread(self._load)
                self._fetched = monotonic()
            except ProviderError as error:
                log_event(_log, logging.ERROR, "sign_in_unavailable", str(error))

    def _load(self) -> tuple[Mapping[str, Any], dict[str, jwt.PyJWK]]:
        address = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        endpoints = _fetch(address)
        if endpoints.get("issuer") != self.issuer:
            raise ProviderError(f"{address} names the issuer {endpoints.get('issuer')!r}, not {self.issuer!r}.")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not _is_safe(endpoints.get(name)):
                raise ProviderError(f"{address} has no {name} with https://.")
        try:
            keys = jwt.PyJWKSet.from_dict(_fetch(endpoints["jwks_uri"])).keys
        except jwt.PyJWTError as error:
            raise ProviderError(f"{endpoints['jwks_uri']} has no keys: {error}.") from error
        # A key has one algorithm, so no token chooses another for it.
        usable = (key for key in keys if key.algorithm_name in _ALGORITHMS and key.public_key_use in ("sig", None))
        return endpoints, {key.key_id: key for key in usable if key.key_id}


class _NoRedirects(HTTPRedirectHandler):
    """A secret is sent to the address of the provider's description, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = build_opener(_NoRedirects())


def _fetch(address: str, form: bytes | None = None, headers: Mapping[str, str] = {}) -> dict[str, Any]:
    """A JSON object by GET, or by POST of a form. Raises ProviderError."""
    request = Request(address, form, {"Accept": "application/json", "User-Agent": f"ragfm/{__version__}", **headers})  # noqa: S310  checked
    try:
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            content = json.loads(response.read(_MAX_BYTES))
    except HTTPError as error:
        detail = error.read(300).decode(errors="replace")
        raise ProviderError(f"{address} answers {error.code}: {detail}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise ProviderError(f"{address} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ProviderError(f"{address} is not a JSON object.")
    return content


def _is_safe(address: object) -> bool:
    """Whether it is an address that only its owner can answer for: https, or this machine."""
    if not isinstance(address, str):
        return False
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def _refused(why: str) -> ApiError:
    return ApiError(401, f"The token is not accepted: {why}.", code="invalid_token")
