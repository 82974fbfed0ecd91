"""Sign-in by OpenID Connect at npm's `oidc-provider`: bearer tokens, the page's session, and attacks on both."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.browser import Visit, browsing, expect
from support.free_port import free_port
from support.identity_provider import (
    AUDIENCE,
    CLIENTS,
    GROUPS,
    SECRET,
    Browser,
    IdentityProvider,
    SigningKey,
    running_provider,
)
from support.running_server import ANSWER, QUESTION, Running, eventually, make_collection, serve
from support.running_server import SECRET as SALARY

from ragfm.cli import ragfm
from ragfm.core.config import OidcSection
from ragfm.core.errors import ConfigError
from ragfm.server import oidc_provider
from ragfm.server.request_guard import Limits
from ragfm.server.sign_in import SignIn
from ragfm.testing import ScriptedReader


def settings(provider: IdentityProvider, algorithm: str = "RS256", **changes: Any) -> OidcSection:
    client = {"client_id": CLIENTS[algorithm], "client_secret": SECRET if algorithm == "RS256" else None}
    given = {"issuer": provider.issuer, "audience": AUDIENCE, "groups": GROUPS, **client, **changes}
    return OidcSection.model_validate(given)


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def signing(provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with keys whose users sign in at the provider."""
    sign_in, port = SignIn(settings(provider)), provider.server_port
    with serve(tmp_path_factory.mktemp("signing"), ScriptedReader([ANSWER]), sign_in=sign_in, port=port) as it:
        it.address = provider.server
        yield it


@pytest.fixture
def browser_of(signing: Running) -> Callable[[], Browser]:
    return lambda: Browser(signing.address)


def with_token(running: Running, token: str) -> httpx.Client:
    return httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def found(client: httpx.Client, query: str = "salary of the director", **headers: str) -> str:
    said = client.post("/v1/search", json={"query": query, "mode": "keyword"}, headers=headers)
    assert said.status_code == 200, said.text
    return said.text


# --- Bearer tokens -----------------------------------------------------------------------------------------------


def test_a_token_of_the_provider_is_as_good_as_a_key(
    signing: Running, provider: IdentityProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ragfm.server")
    name = f"{urlsplit(provider.issuer).netloc}:robot"
    with with_token(signing, provider.robot_token()) as robot, signing.client("hr") as key:
        assert SALARY in found(robot)
        answer = robot.post("/v1/chat/completions", json={"model": "handbook", "messages": QUESTION})
        assert answer.json()["ragfm"]["citations"]
        logged = lambda: [getattr(record, "fields", {}) for record in caplog.records]  # noqa: E731
        named = lambda: {one["key"] for one in logged() if one.get("route") == "/v1/chat/completions"}  # noqa: E731
        assert eventually(named) == {name}  # a response is sent before its line is written

        stored = robot.post("/v1/documents", files={"file": ("notes.txt", b"The zebra is called Bob.")})
        assert stored.status_code == 201, stored.text
        uri = stored.json()["uri"]
        eventually(lambda: robot.get(f"/v1/documents/{uri}").json()["state"] == "ready", 300)
        assert robot.get("/v1/documents", params={"mine": True}).json()["data"][0]["uri"] == uri
        assert key.get(f"/v1/documents/{uri}").status_code == 404, "an upload is its user's own"
        assert robot.delete(f"/v1/documents/{uri}").status_code in (200, 202)

        assert robot.get("/metrics").status_code == 403
        assert key.get("/metrics").status_code == 200


def test_groups_come_from_the_mapping_only(signing: Running, provider: IdentityProvider) -> None:
    key = provider.keys["RS256"]
    for groups, sees in (
        (["/staff/hr"], True),
        ("/staff/hr", True),  # a single value
        (["hr", "board", "key:hr", "/staff/hr/", "/STAFF/HR"], False),
        ([["/staff/hr"], {"/staff/hr": 1}, None, 5], False),
        ({"/staff/hr": True}, False),
        (None, False),
    ):
        with with_token(signing, key.sign(provider.claims(groups=groups))) as client:
            assert (SALARY in found(client)) == sees, groups
    with with_token(signing, key.sign(provider.claims(groups=["board"]))) as client:
        forged = client.post("/v1/search", json={"query": "x", "groups": ["hr"]})
        assert (forged.status_code, forged.json()["error"]["param"]) == (400, "groups")


def test_users_are_told_apart_from_each_other_and_from_keys(signing: Running, provider: IdentityProvider) -> None:
    """Whatever an issuer calls them: the own group of a name must never be that of another."""
    named = signing.app.state.sign_in.provider.user
    subjects = ["hr", "key:hr", "a:b", "a", "a b", "a%20b", "ä", "a\n", "../x", "x" * 255]
    names = {named({"sub": subject}).name for subject in subjects}
    assert len(names) == len(subjects)
    assert all(name.startswith(urlsplit(provider.issuer).netloc + ":") for name in names)
    assert len({name.rpartition(":")[0] for name in names}) == 1, "a subject has no colon, so no other issuer's name"
    for nothing in ({}, {"sub": ""}, {"sub": " "}, {"sub": 5}, {"sub": None}):
        with pytest.raises(Exception, match="no claim 'sub'"):
            named(nothing)


def test_users_have_the_limits_of_the_settings(provider: IdentityProvider, tmp_path_factory: Any) -> None:
    limits = settings(provider, scopes=["read"], rate=3, user_claim="name", uploads_mb=1)
    token = provider.keys["RS256"].sign(provider.claims())
    with (
        serve(tmp_path_factory.mktemp("limits"), ScriptedReader([ANSWER]), sign_in=SignIn(limits)) as it,
        with_token(it, token) as client,
    ):
        refused = client.post("/v1/documents", files={"file": ("a.txt", b"x")})
        assert refused.json()["error"]["code"] == "missing_scope"
        assert [client.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
        user = it.app.state.sign_in.provider.user(provider.claims())
        assert (user.name.rpartition(":")[2], user.uploads_mb) == ("Ann%20Example", 1)
        with with_token(it, provider.keys["RS256"].sign(provider.claims(name="Eve"))) as other:
            assert other.get("/v1/models").status_code == 200, "each user has an allowance"
        used = list(it.keys.path.parent.glob("*.used/*"))
        assert used == [], "only keys have a file of their last use"


def unsigned(claims: dict[str, Any], **header: Any) -> str:
    parts = ({"typ": "JWT", **header}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def forged_tokens(provider: IdentityProvider) -> dict[str, str]:
    """Tokens that nobody may accept, each with one thing wrong."""
    rsa, ec, claims, now = provider.keys["RS256"], provider.keys["ES256"], provider.claims, int(time.time())
    good, mallory = rsa.sign(claims()), SigningKey("RS256", rsa.kid)
    head, body, signature = good.split(".")
    public = rsa.private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    hmac = jwt.get_algorithm_by_name("HS256")

    def confused(secret: bytes) -> str:
        signed = unsigned(claims(), alg="HS256", kid=rsa.kid).rstrip(".")
        mac = hmac.sign(signed.encode(), secret)
        return f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"

    more = unsigned(claims(groups=["/staff/hr", "board"])).split(".")[1]
    deep = base64.urlsafe_b64encode(b'{"kid": ' + b"[" * 9000 + b"]" * 9000 + b"}").decode().rstrip("=")
    jwk = {**mallory.jwk(), "kid": "mallory"}
    return {
        "alg=none": unsigned(claims(), alg="none", kid=rsa.kid),
        "alg=None": unsigned(claims(), alg="None", kid=rsa.kid),
        "alg=none with the signature": f"{unsigned(claims(), alg='none', kid=rsa.kid)}{signature}",
        "no algorithm": unsigned(claims(), kid=rsa.kid),
        "HS256 with the public key as PEM": confused(pem),
        "HS256 with the public key as PEM, stripped": confused(pem.strip()),
        "HS256 with the public key as DER": confused(der),
        "HS256 with the JWK": confused(json.dumps(rsa.jwk()).encode()),
        "HS256 with nothing": confused(b""),
        "PS256": jwt.encode(claims(), rsa.private, "PS256", {"kid": rsa.kid}),
        "RS512": jwt.encode(claims(), rsa.private, "RS512", {"kid": rsa.kid}),
        "the kid of another algorithm": rsa.sign(claims(), kid=ec.kid),
        "another key with the kid": mallory.sign(claims()),
        "another key with a kid of its own": mallory.sign(claims(), kid="mallory"),
        "a key in the header": mallory.sign(claims(), kid="mallory", jwk=jwk),
        "the address of a key": mallory.sign(claims(), kid="mallory", jku="http://127.0.0.1:9/jwks"),
        "no kid": jwt.encode(claims(), rsa.private, "RS256"),
        "a kid that is a path": rsa.sign(claims(), kid="../../dev/null"),
        "a critical header": rsa.sign(claims(), crit=["exp"]),
        "the type of a sign-out": rsa.sign(claims(), typ="logout+jwt"),
        "a forged group": f"{head}.{more}.{signature}",
        "no signature": f"{head}.{body}.",
        "a changed signature": f"{head}.{body}.{signature[:-6]}{'A' * 6}",
        "another audience": rsa.sign(claims(aud="another-api")),
        "the audience as a part": rsa.sign(claims(aud=f"{AUDIENCE}-2")),
        "no audience": rsa.sign(claims(aud=None)),
        "another issuer": rsa.sign(claims(iss="https://login.example.org")),
        "the issuer with a slash": rsa.sign(claims(iss=f"{provider.issuer}/")),
        "no issuer": rsa.sign(claims(iss=None)),
        "expired": rsa.sign(claims(exp=now - 70)),
        "no expiry": rsa.sign(claims(exp=None)),
        "an expiry that is no number": rsa.sign(claims(exp="soon")),
        "not yet valid": rsa.sign(claims(nbf=now + 120)),
        "issued in the future": rsa.sign(claims(iat=now + 120)),
        "no subject": rsa.sign(claims(sub=None)),
        "two dots": "..",
        "no JSON": "YQ.YQ.YQ",
        "deep": f"{deep}.{body}.{signature}",
    }


FORGED = (
    "alg=none,alg=None,alg=none with the signature,no algorithm,HS256 with the public key as PEM,"
    "HS256 with the public key as PEM; stripped,HS256 with the public key as DER,HS256 with the JWK,HS256 with nothing,"
    "PS256,RS512,the kid of another algorithm,another key with the kid,another key with a kid of its own,"
    "a key in the header,the address of a key,no kid,a kid that is a path,a critical header,the type of a sign-out,"
    "a forged group,no signature,a changed signature,another audience,the audience as a part,no audience,"
    "another issuer,the issuer with a slash,no issuer,expired,no expiry,an expiry that is no number,not yet valid,"
    "issued in the future,no subject,two dots,no JSON,deep"
)


@pytest.mark.parametrize("name", [name.replace(";", ",") for name in FORGED.split(",")])
def test_a_forged_token_is_refused(signing: Running, provider: IdentityProvider, name: str) -> None:
    tokens = forged_tokens(provider)
    assert sorted(tokens) == sorted(name.replace(";", ",") for name in FORGED.split(","))
    with with_token(signing, tokens[name]) as client:
        said = client.post("/v1/search", json={"query": "salary"})
    assert said.status_code == 401, said.text
    assert said.json()["error"]["code"] == ("expired_token" if name == "expired" else "invalid_token")
    assert said.headers["www-authenticate"] == "Bearer"


def test_the_tokens_that_are_forged_would_be_good(signing: Running, provider: IdentityProvider) -> None:
    now = int(time.time())
    for key in provider.keys.values():
        for changes in ({}, {"aud": ["another-api", AUDIENCE]}, {"exp": now - 40}, {"nbf": now + 40}):
            with with_token(signing, key.sign(provider.claims(**changes))) as client:
                assert client.get("/v1/models").status_code == 200, changes  # also within the clock skew
    for kind in ("at+jwt", "application/at+jwt"):
        with with_token(signing, provider.keys["ES256"].sign(provider.claims(), typ=kind)) as client:
            assert client.get("/v1/models").status_code == 200


def test_an_id_token_is_for_the_page_only(signing: Running, provider: IdentityProvider) -> None:
    token = provider.keys["RS256"].sign(provider.claims(aud="ragfm", nonce="n"))
    with with_token(signing, token) as client:
        assert client.get("/v1/models").status_code == 401


def test_who_tries_many_tokens_has_to_wait(provider: IdentityProvider, tmp_path_factory: Any) -> None:
    few = Limits(attempts_per_minute=5, refusal_seconds=0)
    sign_in, key = SignIn(settings(provider)), provider.keys["RS256"]
    with serve(tmp_path_factory.mktemp("many"), ScriptedReader([ANSWER]), limits=few, sign_in=sign_in) as it:
        good, bad = key.sign(provider.claims()), key.sign(provider.claims(aud="x"))
        with with_token(it, bad) as client:
            assert [client.get("/v1/models").status_code for _ in range(6)] == [401] * 5 + [429]
        with with_token(it, good) as client:
            assert client.get("/v1/models").status_code == 200, "a token that is valid is no attempt"


def test_keys_are_rotated_withdrawn_and_kept_while_the_provider_is_down(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_provider() as provider:
        monkeypatch.setattr(oidc_provider, "_RETRY_SECONDS", 0.2)
        folder = tmp_path_factory.mktemp("rotated")
        with serve(folder, ScriptedReader([ANSWER]), sign_in=SignIn(settings(provider))) as it:

            def status(token: str) -> int:
                with with_token(it, token) as client:
                    return client.get("/v1/models").status_code

            old = provider.keys["RS256"].sign(provider.claims())
            assert status(old) == 200
            provider.stop()
            assert status(old) == 200, "the keys are known"
            assert status(SigningKey("RS256", "unknown").sign(provider.claims())) == 401
            provider.start()
            time.sleep(0.3)
            assert status(provider.keys["RS256"].sign(provider.claims())) == 200, "a new key is fetched"
            assert status(old) == 401, "and the old one is withdrawn"
            with it.client("hr") as client:
                assert client.get("/v1/models").status_code == 200


def test_unknown_keys_do_not_make_the_server_ask_the_provider_each_time(
    signing: Running, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    fetch = oidc_provider._fetch
    monkeypatch.setattr(oidc_provider, "_fetch", lambda *given: asked.append(given) or fetch(*given))
    for number in range(20):
        with with_token(signing, SigningKey("ES256", f"unknown-{number}").sign(provider.claims())) as client:
            assert client.get("/v1/models").status_code == 401
    assert len(asked) <= 2, "the description and the keys, once"


def test_without_a_provider_keys_work_and_users_are_told(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    gone = OidcSection(issuer="http://127.0.0.1:9/realm")
    token = SigningKey("RS256", "k").sign({"sub": "ann"})
    with serve(tmp_path_factory.mktemp("gone"), ScriptedReader([ANSWER]), sign_in=SignIn(gone)) as it:
        with it.client("hr") as client:
            assert client.get("/v1/models").status_code == 200
        with with_token(it, token) as client:
            said = client.get("/v1/models")
            assert (said.status_code, said.json()["error"]["code"]) == (503, "sign_in_unavailable")
            assert client.get("/signin").headers["location"] == "./#sign_in_unavailable"
    assert "http://127.0.0.1:9/realm/.well-known/openid-configuration cannot be read" in caplog.text


# --- The page ----------------------------------------------------------------------------------------------------


def test_a_user_signs_in_asks_and_signs_out(signing: Running, browser_of: Callable[[], Browser]) -> None:
    browser = browser_of()
    first = browser.models()
    assert (first.status_code, first.headers["x-ragfm-user"]) == (401, "")
    done = browser.sign_in("ann")
    assert (done.status_code, done.headers["location"]) == (303, "../")
    assert done.headers["referrer-policy"] == "no-referrer"
    set_cookie = {cookie.split("=")[0]: cookie for cookie in done.headers.get_list("set-cookie")}
    assert re.search(r"; HttpOnly; Path=/; SameSite=strict$", set_cookie["ragfm-session"])
    assert "Max-Age=0" in set_cookie["ragfm-sign-in"]

    models = browser.models()
    assert models.status_code == 200
    assert models.headers["x-ragfm-user"].endswith("%3Aann Ann%20Example")
    assert SALARY in found(browser, **browser.page)
    cookie = browser.cookies["ragfm-session"]
    claims = jwt.decode(cookie, options={"verify_signature": False})
    assert 3500 < claims["exp"] - time.time() <= 3600

    said = browser.post("/signout", headers=browser.page)
    query = parse_qs(urlsplit(said.json()["url"]).query)
    assert query == {"client_id": ["ragfm"], "post_logout_redirect_uri": [f"{signing.address}/"]}
    assert "ragfm-session" not in browser.cookies
    browser.cookies.set("ragfm-session", cookie)  # of a thief
    said = browser.models()
    assert (said.status_code, said.json()["error"]["code"]) == (401, "session_ended")


def test_other_users_see_less(browser_of: Callable[[], Browser]) -> None:
    browser = browser_of()
    browser.sign_in("bob")
    assert SALARY not in found(browser, **browser.page)


def refused(done: httpx.Response, code: str) -> None:
    """The browser is sent to the page with an error, and has no session."""
    assert (done.status_code, done.headers["location"]) == (303, f"../#{code}")
    assert not any(cookie.startswith("ragfm-session=") for cookie in done.headers.get_list("set-cookie"))


def changed(address: str, **changes: str | None) -> str:
    url = httpx.URL(address)
    for name, value in changes.items():
        url = url.copy_remove_param(name) if value is None else url.copy_set_param(name, value)
    return str(url)


def test_a_code_and_a_state_are_good_once(browser_of: Callable[[], Browser]) -> None:
    browser = browser_of()
    address = browser.address_of_callback("ann")
    started = browser.cookies["ragfm-sign-in"]
    assert browser.get(address).headers["location"] == "../"
    refused(browser.get(address), "sign_in_expired")
    browser.cookies.set("ragfm-sign-in", started, domain="localhost.local")
    refused(browser.get(address), "sign_in_expired")


def test_a_code_of_somebody_else_is_refused(browser_of: Callable[[], Browser]) -> None:
    """The attacker's code, or a stolen one, in a sign-in that another browser has started: CSRF and injection."""
    mallory, ann, other = browser_of(), browser_of(), browser_of()
    address = mallory.address_of_callback("bob")
    refused(ann.get(address), "sign_in_expired")  # she has not started one
    own = ann.address_of_callback("ann")
    refused(ann.get(address), "sign_in_expired")  # nor this one
    own = ann.address_of_callback("ann")
    code = parse_qs(urlsplit(address).query)["code"][0]
    refused(ann.get(changed(own, code=code)), "sign_in_failed")  # the provider misses the verifier
    own = other.address_of_callback("ann")
    refused(other.get(changed(own, state="")), "sign_in_expired")
    refused(other.get(changed(own, state=None)), "sign_in_expired")
    refused(other.get(changed(own, state="ä")), "sign_in_expired")
    refused(other.get(changed(own, iss="https://login.example.org")), "sign_in_expired")  # the first one ended it


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"iss": "https://login.example.org"}, "sign_in_failed"),
        ({"code": "made-up"}, "sign_in_failed"),
        ({"code": None, "error": "access_denied"}, "sign_in_denied"),
        ({"code": None}, "sign_in_denied"),
    ],
)
def test_a_response_that_is_not_right_starts_no_session(
    browser_of: Callable[[], Browser], change: dict[str, Any], code: str
) -> None:
    browser = browser_of()
    refused(browser.get(changed(browser.address_of_callback("ann"), **change)), code)
    assert browser.models().status_code == 401


@pytest.mark.parametrize("change", [{"nonce": "x"}, {"nonce": None}, {"azp": "x"}, {"aud": AUDIENCE}, {"exp": 1}])
def test_an_id_token_that_is_not_for_this_sign_in_is_refused(
    signing: Running,
    provider: IdentityProvider,
    browser_of: Callable[[], Browser],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    browser = browser_of()
    address = browser.address_of_callback("ann")
    started = jwt.decode(browser.cookies["ragfm-sign-in"], options={"verify_signature": False})
    claims = {"aud": "ragfm", "nonce": started["nonce"]}

    async def redeem(*_: str) -> dict[str, Any]:
        return {"id_token": provider.keys["RS256"].sign(provider.claims(**claims))}

    monkeypatch.setattr(signing.app.state.sign_in.provider, "redeem", redeem)
    claims |= change
    refused(browser.get(address), "sign_in_failed")


def test_no_address_in_a_request_redirects_elsewhere(signing: Running, browser_of: Callable[[], Browser]) -> None:
    evil = dict.fromkeys(
        ("next", "redirect_uri", "return_to", "url", "post_logout_redirect_uri"), "https://evil.example/"
    )
    browser = browser_of()
    start = browser.get("/signin", params=evil)
    assert start.headers["location"].startswith(f"{signing.app.state.sign_in.provider.issuer}/auth?")
    assert "evil.example" not in start.headers["location"]
    address = browser.address_of_callback("ann")
    assert browser.get(str(httpx.URL(address).copy_merge_params(evil))).headers["location"] == "../"
    assert "evil.example" not in browser.post("/signout", params=evil, headers=browser.page).text
    # A forged Host reaches the provider as the address to return to, which it does not know.
    said = browser_of().get("/signin", headers={"Host": "evil.example"})
    said = httpx.get(said.headers["location"])
    assert (said.status_code, "redirect_uri" in said.text) == (400, True)


def test_a_session_that_the_attacker_has_set_is_replaced(browser_of: Callable[[], Browser]) -> None:
    """Session fixation: what is in the browser before a sign-in never becomes the session of its user."""
    mallory, ann = browser_of(), browser_of()
    mallory.sign_in("bob")
    planted = mallory.cookies["ragfm-session"]
    ann.cookies.set("ragfm-session", planted, domain="localhost.local")
    ann.sign_in("ann")
    assert ann.cookies["ragfm-session"] != planted
    assert ann.models().headers["x-ragfm-user"].endswith("%3Aann Ann%20Example")
    assert mallory.models().headers["x-ragfm-user"].endswith("%3Abob Bob%20Example")


def test_a_cookie_counts_only_for_the_page(browser_of: Callable[[], Browser]) -> None:
    """CSRF: other sites cannot send the page's header, and their preflights get no permission."""
    browser = browser_of()
    browser.sign_in("ann")
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/search"), ("POST", "/v1/documents"), ("GET", "/mcp")):
        assert browser.request(method, path).status_code == 401
    assert browser.post("/signout").status_code == 403
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Headers": "x-ragfm-page"}
    preflight = browser.options("/v1/search", headers={**asks, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 401
    assert not any(name.startswith("access-control") for name in preflight.headers)
    assert browser.models().status_code == 200


def test_a_cookie_that_is_not_a_session_of_this_server_is_refused(
    signing: Running, provider: IdentityProvider, browser_of: Callable[[], Browser]
) -> None:
    browser = browser_of()
    browser.sign_in("ann")
    good = browser.cookies["ragfm-session"]
    sign_in = signing.app.state.sign_in
    claims = jwt.decode(good, options={"verify_signature": False})
    browser.address_of_callback("ann")
    other = SignIn(settings(provider))
    for cookie in (
        unsigned(claims, alg="none"),
        jwt.encode(claims, "a guess that is long enough for HS256", "HS256"),
        provider.keys["RS256"].sign(claims),
        provider.keys["RS256"].sign(provider.claims()),
        browser.cookies["ragfm-sign-in"],
        sign_in._seal("session", -1, claims=claims["claims"]),
        other._seal("session", 100, claims=claims["claims"]),
        good[:-4] + "AAAA",
        "x",
    ):
        with httpx.Client(base_url=signing.address, cookies={"ragfm-session": cookie}) as thief:
            said = thief.get("/v1/models", headers=browser.page)
            assert (said.status_code, said.json()["error"]["code"]) == (401, "session_ended")
    with with_token(signing, good) as client:
        assert client.get("/v1/models").status_code == 401, "a session is no bearer token"
    with httpx.Client(base_url=signing.address, cookies={"ragfm-session": good}) as client:
        assert client.get("/v1/models", headers=browser.page).status_code == 200


def test_servers_with_the_same_secret_share_sessions_behind_a_proxy(provider: IdentityProvider) -> None:
    """With TLS, the cookie is for this host and for HTTPS only; below a path, for that path."""
    from starlette.requests import HTTPConnection
    from starlette.responses import Response

    for url, expected in (
        ("https://ask.example.org", "__Host-ragfm-session=x; HttpOnly; Path=/; SameSite=strict; Secure"),
        ("https://example.org/ask/", "ragfm-session=x; HttpOnly; Path=/ask/; SameSite=strict; Secure"),
    ):
        given = {"url": url, "session_secret": "s" * 32}
        one, two = SignIn(settings(provider, **given)), SignIn(settings(provider, **given))
        response = Response()
        request: Any = HTTPConnection({"type": "http", "headers": []})
        one._set_cookie(request, response, "session", "x")
        assert response.headers["set-cookie"] == expected
        cookie = f"{expected.split('=')[0]}={one._seal('session', 9, claims={'sub': 'ann'})}".encode()
        request = HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})
        content = two._unseal(request, "session")
        assert content is not None
        assert content["claims"] == {"sub": "ann"}
        assert one._callback(request) == f"{url.rstrip('/')}/signin/callback"


# --- In a browser ------------------------------------------------------------------------------------------------


FOREIGN_REQUESTS = """async (server) => {
  const ask = (path, more) => fetch(server + path, { credentials: 'include', ...more })
    .then((said) => said.status, () => 'blocked');
  const header = { 'X-Ragfm-Page': '1' };
  const send = (path, headers, mode) => ask(path, { method: 'POST', headers, mode, body: '{}' });
  return [
    await ask('/v1/models', { headers: header }), await ask('/v1/models', {}),
    await send('/v1/search', header), await send('/signout', header), await send('/signout', {}, 'no-cors'),
  ];
}"""


@browsing
@pytest.mark.parametrize("algorithm", CLIENTS)
def test_the_page_signs_its_user_in_and_out(
    browser: Any, algorithm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With a client that has a secret, and with one that has none. The provider is on another site."""
    folder = tmp_path_factory.mktemp("browser")
    with running_provider() as provider:
        sign_in, port = SignIn(settings(provider, algorithm)), provider.server_port
        with serve(folder, ScriptedReader([ANSWER]), sign_in=sign_in, port=port):
            visit = Visit(browser, provider.server)
            page, context = visit.page, visit.context
            context.route("https://fonts.googleapis.com/**", lambda route: route.abort())
            dialog = page.get_by_role("dialog", name="Sign in")
            expect(dialog.get_by_role("alert")).to_be_hidden()
            dialog.get_by_role("button", name="Use a key instead").click()
            page.get_by_role("dialog", name="Key").get_by_role("button", name="Close").click()
            page.locator("header").get_by_role("button", name="Sign in").click()

            # The user changes her mind, then signs in.
            dialog.get_by_role("button", name="Sign in").click()
            page.get_by_role("link", name="Cancel").click()
            expect(dialog.get_by_role("alert")).to_have_text("The sign-in was cancelled or refused.")
            assert page.url == f"{provider.server}/"
            dialog.get_by_role("button", name="Sign in").click()
            page.get_by_placeholder("Enter any login").fill("ann")
            page.get_by_placeholder("and password").fill("x")
            page.get_by_role("button", name="Sign-in").click()
            page.wait_for_url(f"{provider.server}/")
            expect(page.locator("#model")).to_have_value("handbook")
            expect(dialog).to_be_hidden()
            visit.ask("How many days of leave do parents get?")
            assert page.locator("#chats .chat").count() == 1
            (cookie,) = context.cookies(provider.server + "/v1")
            about = (cookie["name"], cookie["httpOnly"], cookie["sameSite"], cookie["expires"])
            assert about == ("ragfm-session", True, "Strict", -1)
            stored = page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie")
            assert cookie["value"] not in stored

            # She uploads, and shares with her group.
            page.locator("#documents-open").click()
            page.get_by_role("group", name="Share what you add with").get_by_label("hr").check()
            page.locator("#files").set_input_files(
                {"name": "zebra.txt", "mimeType": "text/plain", "buffer": b"It is Bob."}
            )
            expect(page.locator(".card", has_text="zebra.txt").last).to_contain_text("yours", timeout=60_000)
            page.keyboard.press("Escape")

            # A page of another site and one of this site, but of another origin, act in her browser.
            for foreign in (
                f"{provider.issuer}/interaction/none",
                f"{provider.server.replace(str(port), str(free_port()))}/",
            ):
                other = context.new_page()
                other.route(foreign, lambda route: route.fulfill(body="<p>foreign</p>", content_type="text/html"))
                other.goto(foreign)
                statuses = other.evaluate(FOREIGN_REQUESTS, provider.server)
                assert statuses == ["blocked"] * 5
                other.close()
            page.reload()
            expect(page.locator("#model")).to_have_value("handbook")
            assert page.locator("#chats .chat").count() == 1

            # The session ends, and the same user goes on.
            context.clear_cookies(name="ragfm-session")
            context.add_cookies([{"name": "ragfm-session", "value": "ended", "url": provider.server}])
            visit.ask("How many days of leave do parents get?", wait=False)
            expect(dialog.get_by_role("alert")).to_have_text("The session has ended. Sign in again.")
            dialog.get_by_role("button", name="Sign in").click()  # without a password: the provider knows her still
            expect(page.get_by_role("button", name="Signed in as Ann Example")).to_be_visible()

            page.get_by_role("button", name="Signed in as Ann Example").click()
            account = page.get_by_role("dialog", name="Account")
            expect(account).to_contain_text("You are signed in as Ann Example.")
            account.get_by_role("button", name="Sign out").click()
            page.get_by_role("button", name="Yes, sign me out").click()
            page.wait_for_url(f"{provider.server}/")
            expect(dialog.get_by_role("button", name="Sign in")).to_be_focused()
            assert context.cookies(provider.server) == []
            assert page.locator("#chats .chat").count() == 0, "the chats are hers"
            assert page.evaluate("window.hacked") is None
            visit.context.close()


# --- Settings ----------------------------------------------------------------------------------------------------


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong, why in (
        ({"issuer": "http://login.example.org"}, "not an address with https://"),
        ({"issuer": "login.example.org"}, "not an address with https://"),
        ({"issuer": "https://x", "groups": {"a": ["key:b"]}}, "cannot begin with 'key:'"),
        ({"issuer": "https://x", "groups": {"a": [""]}}, "a group that is not valid"),
    ):
        with pytest.raises(ConfigError, match=why):
            SignIn(OidcSection.model_validate(wrong))


def test_a_reload_changes_the_rights_of_users_and_nothing_else() -> None:
    signing = SignIn(OidcSection(issuer="https://x", groups={"a": ["hr"]}))
    claims = {"sub": "ann", "groups": ["a"]}
    assert signing.provider.user(claims).groups == ("hr",)
    signing.reload(OidcSection(groups={"a": ["board"]}, scopes=["read"]))
    user = signing.provider.user(claims)
    assert (user.name, user.groups, user.scopes) == ("x:ann", ("board",), ("read",))
    with pytest.raises(ConfigError, match="cannot begin with 'key:'"):
        signing.reload(OidcSection(groups={"a": ["key:b"]}))
    assert signing.provider.user(claims).groups == ("board",)


def test_the_command_line_serves_users_without_any_key(provider: IdentityProvider, tmp_path: Path) -> None:
    (tmp_path / "collection").mkdir()
    collection = make_collection(tmp_path / "collection")
    shown = str(CliRunner().invoke(ragfm, ["serve", "--no-auth", "--oidc", "https://x"]).output)
    assert "--oidc and --no-auth exclude each other" in shown
    (tmp_path / "collection" / "ragfm.toml").write_text('[server.oidc.groups]\n"/staff/hr" = ["hr"]\n')
    command = [
        sys.executable,
        "-m",
        "ragfm",
        "serve",
        "-c",
        f"handbook={collection}",
        "--port",
        "0",
        "--reader",
        "none",
    ]
    env = {**os.environ, "RAGFM_SERVER__OIDC__AUDIENCE": AUDIENCE}
    process = subprocess.Popen([*command, "--oidc", provider.issuer], stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stderr
        address = next(line["address"] for line in map(json.loads, process.stderr) if line["event"] == "start")
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {provider.robot_token()}"}) as client:
            assert SALARY in found(client)
    finally:
        process.terminate()
        process.communicate(timeout=60)
