"""Sign-in by OpenID Connect: bearer tokens of programs, and sessions of the page.

    page ─→ /signin ─→ provider ─→ /signin/callback ─→ page with a session cookie ─→ /signout ─→ provider

The sign-in is by authorisation code with PKCE. Both cookies are sealed, and tell who somebody is to this server only.
So any server with the same `session_secret` accepts them, and a server remembers only those that were used up.
"""

from __future__ import annotations

import base64
import hmac
import logging
import secrets
from collections.abc import Mapping
from hashlib import sha256
from time import time
from typing import Any, Literal, TypeAlias
from urllib.parse import urlencode, urlsplit

import jwt
from fastapi import APIRouter, Request, Response
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse

from ragfm.core.config import OidcSection
from ragfm.server.api_errors import ApiError
from ragfm.server.api_keys import RequestCounter, User
from ragfm.server.json_logging import log_event
from ragfm.server.oidc_provider import OidcProvider
from ragfm.server.static_pages import PAGE_HEADER

_SESSION_SECONDS = 3600
_SIGN_IN_SECONDS = 600
_MAX_COOKIE = 3800  # characters; browsers drop cookies from 4096 on, with their names
_STARTS_PER_MINUTE = 300  # by address, as for keys that are not valid
_HEADERS = {"cache-control": "no-store", "referrer-policy": "no-referrer"}  # addresses with codes stay here
_Kind: TypeAlias = Literal["sign-in", "session"]
_log = logging.getLogger(__name__)


class SignIn:
    """Who has signed in, and the routes by which users do. Raises ConfigError for settings that cannot work."""

    paths = frozenset({"/signin", "/signin/callback", "/signout"})
    """Paths that need neither a key nor a user."""

    def __init__(self, settings: OidcSection) -> None:
        self.provider = OidcProvider(settings)
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/signin", self._start, methods=["GET"])
        self.router.add_api_route("/signin/callback", self._finish, methods=["GET"])
        self.router.add_api_route("/signout", self._sign_out, methods=["POST"])
        self._settings = settings
        secret = settings.session_secret
        self._secret = secret.get_secret_value().encode() if secret else secrets.token_bytes(32)
        self._used_up: dict[str, int] = {}  # ids of cookies by the time when they expire
        self._starts = RequestCounter()

    def reload(self, settings: OidcSection) -> None:
        """Give users other rights from the next request on. Raises ConfigError for settings that cannot work."""
        settings = settings.model_copy(update={"issuer": self.provider.issuer})  # it may be an option
        OidcProvider(settings)
        self._settings = self.provider.settings = settings

    async def find(self, connection: HTTPConnection, secret: str) -> User | None:
        """The user of a bearer token, or of the page's session; None if there is neither.

        Raises ApiError for a token or session that is not valid.
        """
        if secret.count(".") == 2:  # a key has no dots
            audience = self._settings.audience or self._settings.client_id
            return self.provider.user(await self.provider.claims(secret, audience))
        if secret or PAGE_HEADER not in connection.headers or not self._cookie(connection, "session"):
            return None
        session = self._unseal(connection, "session")
        if session is None:
            raise ApiError(401, "The session has ended. Sign in again.", code="session_ended")
        return self.provider.user(session["claims"])

    async def _start(self, request: Request) -> Response:
        """Send the browser to the provider."""
        self._count(request)
        try:
            await self.provider.ready()
        except ApiError as error:
            return self._show(request, error, "./")
        nonce, verifier, state = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._callback(request),
            "scope": self._settings.sign_in_scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        response = RedirectResponse(
            _with_query(self.provider.endpoints["authorization_endpoint"], query), 303, _HEADERS
        )
        sealed = self._seal("sign-in", _SIGN_IN_SECONDS, state=state, nonce=nonce, verifier=verifier)
        self._set_cookie(request, response, "sign-in", sealed)
        return response

    async def _finish(self, request: Request) -> Response:
        """Start a session for the user whom the provider sends back, and show the page."""
        self._count(request)
        try:
            user, session = await self._signed_in(request)
        except ApiError as error:
            response = self._show(request, error, "../")
        else:
            request.state.key = user
            response = RedirectResponse("../", 303, _HEADERS)
            self._set_cookie(request, response, "session", session)
        self._set_cookie(request, response, "sign-in", "")
        return response

    def _show(self, request: Request, error: ApiError, page: str) -> Response:
        """Show the page with the kind of an error. The log has the reason."""
        request.state.error = error
        log_event(_log, logging.WARNING, "sign_in_failed", error.detail, request_id=request.state.request_id)
        code = error.code if error.code.startswith("sign_in") else "sign_in_failed"
        return RedirectResponse(f"{page}#{code}", 303, _HEADERS)

    async def _signed_in(self, request: Request) -> tuple[User, str]:
        """The user whom the provider sends back, and the content of the session's cookie. Raises ApiError."""
        query, started = request.query_params, self._unseal(request, "sign-in")
        if started is None or not hmac.compare_digest(started["state"].encode(), query.get("state", "").encode()):
            message = "The sign-in was not started in this browser, was finished before, or took too long."
            raise ApiError(400, message, code="sign_in_expired")
        self._use_up(started)
        if query.get("iss", self.provider.issuer) != self.provider.issuer:
            raise ApiError(400, "The response is of another issuer.", code="sign_in_failed")
        if "code" not in query:
            message = f"The provider says {query.get('error')!r}: {query.get('error_description')!r}"
            raise ApiError(403, message[:300], code="sign_in_denied")
        tokens = await self.provider.redeem(query["code"], started["verifier"], self._callback(request))
        claims = await self.provider.claims(str(tokens.get("id_token", "")), self._settings.client_id)
        user = self.provider.user(claims)
        party = claims.get("azp", self._settings.client_id)
        if claims.get("nonce") != started["nonce"] or party != self._settings.client_id:
            raise ApiError(400, "The ID token is that of another sign-in or client.", code="sign_in_failed")
        kept = {
            "name": user.label,
            self._settings.groups_claim: self.provider.known_groups(claims),
            self._settings.user_claim: claims[self._settings.user_claim],
        }
        session = self._seal("session", _SESSION_SECONDS, claims=kept)
        if len(session) > _MAX_COOKIE:
            raise ApiError(400, f"{user.name} has too many groups for a cookie.", code="sign_in_failed")
        return user, session

    async def _sign_out(self, request: Request) -> Response:
        """End the session. `url` is where the page ends that of the provider, too, or null."""
        if PAGE_HEADER not in request.headers:
            raise ApiError(403, "Only the page can sign its user out.", code="not_the_page")
        if session := self._unseal(request, "session"):
            request.state.key = self.provider.user(session["claims"])
            self._use_up(session)
        query = {"client_id": self._settings.client_id, "post_logout_redirect_uri": self._base(request)}
        address = self.provider.endpoints.get("end_session_endpoint")
        response = JSONResponse({"url": address and _with_query(address, query)}, headers=_HEADERS)
        self._set_cookie(request, response, "session", "")
        return response

    def _count(self, request: Request) -> None:
        """Raise ApiError if an address signs in too often: each attempt may cost the provider a request."""
        seconds = self._starts.take(request.client.host if request.client else "", _STARTS_PER_MINUTE)
        if seconds:
            message = "This address has started too many sign-ins."
            raise ApiError(429, message, code="too_many_sign_ins", retry_after=int(seconds) + 1)

    def _base(self, connection: HTTPConnection) -> str:
        """The page's address in the browser."""
        return f"{(self._settings.url or str(connection.base_url)).rstrip('/')}/"

    def _callback(self, request: Request) -> str:
        return f"{self._base(request)}signin/callback"

    def _seal(self, kind: _Kind, seconds: int, **content: Any) -> str:
        about = {
            "iss": self.provider.issuer,
            "aud": kind,
            "exp": int(time()) + seconds,
            "jti": secrets.token_urlsafe(16),
        }
        return jwt.encode({**about, **content}, self._secret, "HS256")

    def _unseal(self, connection: HTTPConnection, kind: _Kind) -> dict[str, Any] | None:
        """The content of the request's cookie of that kind; None if it is not this server's, expired or used up."""
        try:
            content = jwt.decode(
                self._cookie(connection, kind), self._secret, ["HS256"], audience=kind, issuer=self.provider.issuer
            )
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        return None if content["jti"] in self._used_up else content

    def _use_up(self, content: Mapping[str, Any]) -> None:
        self._used_up = {name: until for name, until in self._used_up.items() if until > time()}
        self._used_up[content["jti"]] = content["exp"]

    def _cookie(self, connection: HTTPConnection, kind: _Kind) -> str:
        return connection.cookies.get(self._cookie_name(connection, kind), "")

    def _cookie_name(self, connection: HTTPConnection, kind: _Kind) -> str:
        # With the prefix, no other host of the domain can set the cookie. Browsers want the path `/` for it.
        parts = urlsplit(self._base(connection))
        return f"{'__Host-' if (parts.scheme, parts.path) == ('https', '/') else ''}ragfm-{kind}"

    def _set_cookie(self, request: Request, response: Response, kind: _Kind, content: str) -> None:
        """Set a cookie until the browser is closed, or delete it."""
        parts = urlsplit(self._base(request))
        response.set_cookie(
            self._cookie_name(request, kind),
            content,
            max_age=None if content else 0,
            path=parts.path,
            secure=parts.scheme == "https",
            httponly=True,
            samesite="strict" if kind == "session" else "lax",  # the provider sends the browser back
        )


def _with_query(address: str, query: Mapping[str, str]) -> str:
    return f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(query)}"
