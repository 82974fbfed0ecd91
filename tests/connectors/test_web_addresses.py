"""The web connector reaches only public addresses, however others are spelled, resolved or redirected to."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("protego", reason="needs the extra web")

from ragfm_connectors import web_addresses
from ragfm_connectors.web import WebConnector
from ragfm_connectors.web_addresses import connect, is_public
from ragfm_connectors.web_client import Client
from support.website import Site, serve

from ragfm import Ref
from ragfm.core.errors import ConfigError, ConnectorError, SourceError

LOOPBACK = [
    "127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "127.255.255.254", "2130706433", "017700000001", "0x7f000001",
    "0x7F.0.0.1", "0x7f.1", "0177.0.0.1", "0177.1", "0177.0x0.0.01", "00000177.0.0.1", "127.0.0.01", "0", "0.0.0.0",
    "0x0", "00", "0.0", "localhost", "LOCALHOST", "localhost.", "LocalHost.", "127.0.0.1.", "[::1]", "[::]",
    "[0:0:0:0:0:0:0:1]", "[0000:0000::0001]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::FFFF:7F00:0001]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2002:7f00:0001::1]", "[2001::7f00:1]", "[2001:0:7f00:1::]",
    "[::ffff:0:127.0.0.1]", "[fe80::5efe:7f00:1]", "[2606:4700::5efe:7f00:1]", "①②⑦.⓪.⓪.①", "１２７.０.０.１",
    "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "⑯⑨.②⑤④.⑯⑨.②⑤④", "%31%32%37.0.0.1", "127.0.0.1%00", "loc%61lhost",
    "user@127.0.0.1", "example.com@127.0.0.1", "example.com:80@127.0.0.1", "127.0.0.1#@example.com",
    "127.0.0.1?@example.com", "127.0.0.1\\@example.com", "example.com\\@127.0.0.1", "127.0.0.1℀.example.com",
]  # fmt: skip
OTHERS = [
    "10.0.0.1", "10.255.255.255", "0x0a000001", "012.0.0.1", "167772161", "172.16.0.1", "172.31.255.255", "192.168.0.1",
    "192.168.1", "3232235521", "100.64.0.1", "100.100.100.200", "169.254.169.254", "0xA9FEA9FE", "2852039166",
    "169.254.43518", "0251.0376.0251.0376", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]",
    "[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[100::1]", "192.0.0.192",
    "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[::ffff:10.0.0.1]",
]  # fmt: skip


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as made:
        yield made


def refused(location: str, **options: Any) -> str:
    with pytest.raises((SourceError, ConfigError)) as caught:
        list(WebConnector(location, pause=0, retries=0, **options).refs())
    return str(caught.value)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were connected to; only local ones are really reached."""
    tried: list[str] = []

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            tried.append(address[0])
            if address[0] not in ("127.0.0.1", "::1"):
                raise ConnectionRefusedError(111, "Connection refused")
            super().connect(address)

    monkeypatch.setattr(web_addresses.socket, "socket", Socket)
    return tried


def test_no_spelling_of_a_private_address_is_reached(site: Site, connected: list[str]) -> None:
    spellings = [*LOOPBACK, *OTHERS]
    assert len(set(spellings)) >= 100
    for host in spellings:
        head, hash_sign, tail = host.partition("#")
        head, mark, query = head.partition("?")
        for scheme in ("http", "https"):
            refused(f"{scheme}://{head}:{site.port}/{mark}{query}{hash_sign}{tail}")
        with pytest.raises(ConnectorError):
            Client("http://example.com/", pause=0, retries=0).get(f"http://{host}:{site.port}/")
    assert site.log == []
    assert connected == []


def test_the_spellings_reach_the_listener_without_the_check(
    site: Site, connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_addresses, "is_public", lambda _: True)
    site.page("/no", status=500)
    for host in ("127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost"):
        site.log.clear()
        refused(f"http://{host}:{site.port}/no")
        assert site.log, host
    connected.clear()
    refused(f"https://localhost:{site.port}/")
    assert connected


def test_redirects_are_checked_at_every_hop(site: Site) -> None:
    with serve() as inside:
        inside.page("/secret", "secret")
        hosts = ["127.1", "2130706433", "0x7f.1", "localhost", "127.0.0.2", "user@127.0.0.3"]
        for number, host in enumerate(hosts):
            site.page(f"/{number}", status=302, Location=f"http://{host}:{inside.port}/secret")
            site.page(f"/via{number}", status=301, Location=f"/{number}")
            assert "not a public address" in refused(site.url(f"/via{number}"), allow_hosts=["127.0.0.1"])
        site.page("/tls", status=302, Location=f"https://localhost:{inside.port}/secret")
        assert "not a public address" in refused(site.url("/tls"), allow_hosts=["127.0.0.1"])
        # and of the host that is allowed, another port is not, where the port is named
        site.page("/port", status=302, Location=inside.url("/secret"))
        assert "not a public address" in refused(site.url("/port"), allow_hosts=[f"127.0.0.1:{site.port}"])
        sitemap = "<urlset>" + f"<url><loc>http://localhost:{site.port}/x</loc></url>" + "</urlset>"
        site.page("/s.xml", sitemap, Content_Type="text/xml")
        (ref,) = WebConnector(site.url("/s.xml"), pause=0, allow_hosts=["127.0.0.1"]).refs()
        assert "a different site" in (ref.skip or "")
        assert "/x" not in site.asked()
        site.page(
            "/rss",
            f"<rss><item><link>http://localhost:{inside.port}/secret</link></item></rss>",
            Content_Type="text/xml",
        )
        (ref,) = WebConnector(site.url("/rss"), pause=0, retries=0, allow_hosts=["127.0.0.1"]).refs()
        assert "not a public address" in (ref.error or "")
        with pytest.raises(ConnectorError, match="not a public address"):
            WebConnector(site.url("/"), pause=0).fetch(Ref(inside.url("/secret")))
        site.page("/robots.txt", status=302, Location=inside.url("/secret"))
        assert "not a public address" in refused(site.url("/"), allow_hosts=[f"127.0.0.1:{site.port}"])
        assert inside.log == []


def test_a_thousand_alternating_answers_of_dns(
    site: Site, connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    public, private = "93.184.216.34", ["127.0.0.1", "169.254.169.254", "::1", "10.0.0.1", "::ffff:127.0.0.1"]
    mixed = [[public], ["127.0.0.1"], [public, "127.0.0.1"], ["::1"], [public, "::1", public]]
    answers = itertools.cycle([*mixed, *([address] for address in private), [public]])

    def answering(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in next(answers)
        ]

    monkeypatch.setattr(web_addresses.socket, "getaddrinfo", answering)
    client = Client("http://x/", pause=0, retries=0)
    for _ in range(1_000):
        with pytest.raises(ConnectorError):
            client.get(f"http://rebind.example:{site.port}/")
    assert site.log == []
    assert set(connected) == {public}
    assert len(asked) == 1_000  # once for each connection
    assert 100 < len(connected) < 900


def test_a_host_is_allowed_by_its_name(site: Site) -> None:
    site.page("/a", "a")
    for allowed in ("127.0.0.1", f"127.0.0.1:{site.port}"):
        assert list(WebConnector(site.url("/a"), pause=0, allow_hosts=[allowed]).refs())
    for other in ("localhost", "127.0.0.1:1", "127.0.0", "27.0.0.1", ""):
        assert "not a public address" in refused(site.url("/a"), allow_hosts=[other])
    named = site.url("/a").replace("127.0.0.1", "LocalHost.")
    assert list(WebConnector(named, pause=0, allow_hosts=["localhost"]).refs())


def test_public_addresses_are_public() -> None:
    for address in ("93.184.216.34", "1.1.1.1", "172.32.0.1", "2606:2800:220:1:248:1893:25c8:1946", "2a00:1450::1"):
        assert is_public(address), address
    for address in ("", "localhost", "127.1", "fe80::1%eth0", "1.1.1.1.1", "2606::1%lo"):
        assert not is_public(address), address
    with pytest.raises(ConnectorError, match="not a public address"):
        connect("localhost", 80, 1, [])
