"""The connector for web pages, with a local server."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("protego", reason="needs the extra web")

from ragfm_connectors.web import WebConnector
from ragfm_connectors.web_client import Client, canonical_url
from support.website import Site, serve

from ragfm import Collection, Ref
from ragfm.core.errors import ConfigError, ConnectorError, MassDeleteError, SourceError
from ragfm.testing import check_connector

OPTIONS: dict[str, Any] = {"allow_hosts": ["127.0.0.1"], "pause": 0.0, "retries": 0}
SITEMAP = '<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{}</urlset>'


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as made:
        yield made


def made(url: str, **options: Any) -> WebConnector:
    return WebConnector(url, **OPTIONS | options)


def listed(url: str, **options: Any) -> dict[str, Ref]:
    return {ref.path: ref for ref in made(url, **options).refs()}


def sitemap(site: Site, *paths: str) -> str:
    site.page("/sitemap.xml", SITEMAP.format("".join(f"<url><loc>{site.url(path)}</loc></url>" for path in paths)))
    site.pages["/sitemap.xml"].headers["Content-Type"] = "application/xml"
    return site.url("/sitemap.xml")


def linked(site: Site) -> str:
    """A site of five pages in /docs/, one of them plain text, with links that lead out of it."""
    site.page("/docs/", '<a href="a.html#x">a</a> <a href="/docs/b?q=1">b</a> <a href="../out.html">out</a>')
    site.page("/docs/a.html", f'<a href="{site.url("/docs/deep/c.html")}">c</a> <a href="mailto:x@y">m</a> Oaks')
    site.page(
        "/docs/b?q=1", '<a href="notes.txt">t</a> <a href="gone.html">gone</a> <a href="javascript:x()">j</a> Elms'
    )
    site.page("/docs/deep/c.html", '<base href="/docs/"><a href="a.html">a</a> Bees')
    site.page("/docs/notes.txt", "Plain notes", Content_Type="text/plain", ETag='"1"')
    site.page("/out.html", "outside")
    return site.url("/docs/")


# --- Pages, sitemaps, feeds, links -------------------------------------------------------------------------------


def test_one_page(site: Site) -> None:
    site.page("/a", "<p>Oaks", Last_Modified="Tue, 03 Mar 2026 10:00:00 GMT")
    connector = made(site.url("/a#part"))
    (ref,) = connector.refs()
    blob = connector.fetch(ref)
    assert (ref.path, ref.revision) == (site.url("/a"), "modified:Tue, 03 Mar 2026 10:00:00 GMT")
    assert (blob.data, blob.media_type) == (b"<p>Oaks", "text/html; charset=utf-8")
    assert blob.metadata == {"modified": "2026-03-03T10:00:00+00:00"}
    assert site.log == [("GET", "/robots.txt"), ("GET", "/a")]  # what was read for the listing is not read again
    assert site.headers[1]["User-Agent"].startswith("ragfm/")
    check_connector(connector)
    site.page("/a", status=410)
    assert listed(site.url("/a")) == {}


@pytest.mark.parametrize("packed", [False, True])
def test_a_sitemap(site: Site, packed: bool) -> None:
    site.page("/a", "a", ETag='"1"')
    site.page("/b", "b")
    site.page("/old", status=301, Location="/b")
    site.page("/style", "x", Content_Type="text/css", ETag="1")
    url = sitemap(site, "/a", "/b", "/old", "/gone", "/style", "/b")
    other = SITEMAP.format("<url><loc>http://example.com/x</loc></url><url><loc>ftp://x/y</loc></url>")
    site.page("/other.xml", gzip.compress(other.encode()) if packed else other, Content_Type="text/xml")
    index = SITEMAP.replace("urlset", "sitemapindex").format(
        f"<sitemap><loc>{url}</loc></sitemap><sitemap><loc>/other.xml</loc></sitemap>"
        "<sitemap><loc>http://example.com/s.xml</loc></sitemap>"
    )
    site.page("/index.xml", index, Content_Type="text/xml")
    found = listed(site.url("/index.xml"))
    assert [path.rpartition("/")[2] for path in found] == ["a", "b", "style", "x"]
    assert found["http://example.com/x"].skip == f"the sitemap is of a different site, {site.url('')}"
    assert found[site.url("/a")].revision == 'etag:"1"'
    assert found[site.url("/b")].revision.startswith("hash:")
    assert found[site.url("/style")].skip == "of type text/css"
    assert site.asked("GET").count("/a") == 0  # its headers were enough
    assert list(listed(url, include=["a"])) == [site.url("/a")]
    check_connector(made(url))


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 501])
def test_a_page_that_only_a_head_does_not_get_is_there(site: Site, status: int) -> None:
    site.page("/a", "a", ETag='"1"').head = status
    (ref,) = listed(sitemap(site, "/a")).values()
    assert (ref.revision, ref.error) == ('etag:"1"', None)


def test_feeds(site: Site) -> None:
    site.page("/1", "<p>One")
    site.page("/2", "<p>Two")
    atom = (
        f'<feed xmlns="http://www.w3.org/2005/Atom"><entry><title>First  one</title><link rel="edit" href="/x"/>'
        f'<link href="{site.url("/1")}"/><author><name>Ann</name></author><published>2026-03-01T10:00:00Z</published>'
        "</entry></feed>"
    )
    rss = (
        f"<rss><channel><link>{site.url()}</link><item><title>First one</title><link>{site.url('/1')}</link>"
        f'<dc:creator xmlns:dc="http://purl.org/dc/elements/1.1/">Ann</dc:creator>'
        f"<pubDate>Sun, 01 Mar 2026 10:00:00 +0000</pubDate></item>"
        f"<item><guid>{site.url('/2')}</guid></item><item><guid isPermaLink='false'>{site.url('/3')}</guid></item>"
        "</channel></rss>"
    )
    for name, body, count in (("/atom", atom, 1), ("/rss", rss, 2)):
        site.page(name, body, Content_Type="application/xml")
        connector = made(site.url(name))
        refs = list(connector.refs())
        assert [ref.path for ref in refs] == [site.url(f"/{number}") for number in range(1, count + 1)]
        metadata = dict(connector.fetch(refs[0]).metadata)
        assert str(metadata.pop("published")).startswith("2026-03-01T10:00:00")
        assert metadata == {"title": "First one", "author": "Ann"}
        assert made(site.url(name)).fetch(refs[0]) == connector.fetch(refs[0])  # without a listing of its own
        check_connector(connector)


def test_links_within_a_folder(site: Site) -> None:
    url = linked(site)
    found = listed(url, links=True)
    paths = {path.removeprefix(url) for path in found}
    assert paths == {"", "a.html", "b?q=1", "deep/c.html", "notes.txt"}
    assert "/out.html" not in site.asked()
    assert site.asked("GET").count("/docs/a.html") == 1
    assert site.asked("GET").count("/docs/notes.txt") == 0
    check_connector(made(url, links=True))
    assert len(listed(url)) == 1
    assert set(listed(url, links=True, include=["deep"])) == {f"{url}deep/c.html"}
    with pytest.raises(SourceError, match="more than 3 pages"):
        listed(url, links=True, max_pages=3)


def test_pages_with_a_dot_in_their_name_have_links(site: Site) -> None:
    site.page("/d/", '<a href="3.12/">1</a> <a href="St._Gallen">2</a> <a href="x.pdf">3</a>', ETag="1")
    site.page("/d/3.12/", '<a href="tutorial.html">t</a>', ETag="2")
    site.page("/d/3.12/tutorial.html", "Oaks")
    site.page("/d/St._Gallen", '<a href="Appenzell">a</a>')
    site.page("/d/Appenzell", "Elms")
    site.page("/d/x.pdf", "%PDF", Content_Type="application/pdf", ETag="3")
    url = site.url("/d/")
    paths = {path.removeprefix(url) for path in listed(url, links=True)}
    assert paths == {"", "3.12/", "3.12/tutorial.html", "St._Gallen", "Appenzell", "x.pdf"}
    assert "/d/x.pdf" not in site.asked("GET")


@pytest.mark.parametrize(
    ("charset", "meta"), [("iso-8859-1", ""), ("shift_jis", ""), ("shift_jis", '<meta charset="shift_jis">')]
)
def test_links_in_the_encoding_of_the_page(site: Site, charset: str, meta: str) -> None:
    name, address = ("été", "%C3%A9t%C3%A9") if charset == "iso-8859-1" else ("夏", "%E5%A4%8F")
    content_type = "text/html" if meta else f"text/html; charset={charset}"
    site.page("/d/", f'{meta}<a href="{name}.html">{name}</a>'.encode(charset), Content_Type=content_type)
    site.page(f"/d/{address}.html", "Oaks")
    assert list(listed(site.url("/d/"), links=True)) == [site.url("/d/"), site.url(f"/d/{address}.html")]


def test_a_slash_in_a_query_is_not_a_folder(site: Site) -> None:
    site.page("/d/?page=/a/b", '<a href="a.html">a</a>')
    site.page("/d/a.html", "Oaks")
    assert list(listed(site.url("/d/?page=/a/b"), links=True)) == [site.url("/d/?page=/a/b"), site.url("/d/a.html")]


def test_a_redirect_in_utf_8_is_followed(site: Site) -> None:
    site.page("/old", status=301, Location="/caf\u00c3\u00a9")  # the server writes Latin-1
    site.page("/caf%C3%A9", "Oaks")
    assert list(listed(site.url("/old"))) == [site.url("/caf%C3%A9")]


@pytest.mark.parametrize("host", ["www..example.com", f"{'a' * 64}.example.com"])
def test_an_invalid_host_in_a_feed_fails_alone(site: Site, host: str) -> None:
    site.page("/1", "<p>One")
    items = f"<item><link>http://{host}/</link></item><item><link>{site.url('/1')}</link></item>"
    site.page("/rss", f"<rss><channel>{items}</channel></rss>", Content_Type="application/xml")
    found = listed(site.url("/rss"))
    assert "is not a valid host name" in (found[f"http://{host}/"].error or "")
    assert not found[site.url("/1")].error


def test_an_empty_line_or_a_byte_order_mark_above_a_sitemap(site: Site) -> None:
    site.page("/a", "a")
    url = sitemap(site, "/a")
    site.page("/sitemap.xml", f"\n{site.pages['/sitemap.xml'].body!s}", Content_Type="application/xml")
    site.page("/sitemap.txt", f"\ufeff{site.url('/a')}\r\n", Content_Type="text/plain")
    assert list(listed(url)) == list(listed(site.url("/sitemap.txt"))) == [site.url("/a")]


def test_a_redirected_site_is_an_error_that_names_its_target(site: Site) -> None:
    url = linked(site)
    site.page("/old/", status=301, Location=url)
    with pytest.raises(SourceError, match=r"/old/ redirects to .*/docs/"):
        listed(site.url("/old/"), links=True)
    assert len(listed(site.url("/old/"))) == 1


def test_a_page_that_names_another_as_its_own(site: Site) -> None:
    site.page("/d/", '<a href="a?utm=1">1</a><a href="a?utm=2">2</a><a href="moved">3</a><a href="bad">4</a>')
    for number in (1, 2):
        site.page(f"/d/a?utm={number}", '<link rel="canonical" href="/d/a">Oaks')
    site.page("/d/moved", status=308, Location="/d/to")
    site.page("/d/to", "moved")
    site.page("/d/bad", '<link rel="canonical" href="http://example.com/">Elms')
    assert [path.rpartition("/")[2] for path in listed(site.url("/d/"), links=True)] == ["", "a", "to", "bad"]


def test_a_site_whose_pages_all_name_the_home_page(site: Site) -> None:
    site.page("/d/", '<a href="a">1</a><a href="b/index.html">2</a><a href="index.html">3</a><a href="?utm=1">4</a>')
    for path in ("a", "b/index.html", "index.html", "?utm=1"):
        site.page(f"/d/{path}", '<link rel="canonical" href="/d/">Oaks')
    assert [path.partition("/d/")[2] for path in listed(site.url("/d/"), links=True)] == ["", "a", "b/index.html"]


def test_addresses_are_written_in_one_way() -> None:
    for spelling in ("HTTP://Example.COM:80/a/../b#x", "http://user:pw@example.com/b", " http://example.com/./b\n"):
        assert canonical_url(spelling) == "http://example.com/b"
    assert canonical_url("https://example.com") == "https://example.com/"
    assert canonical_url("//h/ü?ä=1", base="https://x/") == "https://h/%C3%BC?%C3%A4=1"
    for wrong in (
        "ftp://x/",
        "file:///etc/passwd",
        "javascript:x",
        "x",
        "http://",
        "http://a:b:c/",
        "gopher://x",
        "data:,x",
    ):
        with pytest.raises(ConnectorError):
            canonical_url(wrong)
        with pytest.raises(SourceError):
            WebConnector(wrong)


# --- Request settings ----------------------------------------------------------------------------------------------


def test_a_byte_order_mark_in_robots_txt_is_ignored(site: Site) -> None:
    site.page("/a", "a")
    site.page("/robots.txt", "\ufeffUser-agent: *\nDisallow: /a")
    with pytest.raises(ConnectorError, match="disallows"):
        listed(site.url("/a"))


def test_robots_txt_is_obeyed(site: Site) -> None:
    url = sitemap(site, "/a", "/no/x", "/jump", "/doc.pdf?x")
    site.page("/a", "a")
    site.page("/no/x", "x")
    site.page("/jump", status=302, Location="/no/x")
    site.page("/robots.txt", "User-agent: *\nDisallow: /no/\nDisallow: /*.pdf\nUser-agent: other\nDisallow: /")
    found = listed(url)
    assert {path.rpartition("/")[2]: bool(ref.skip) for path, ref in found.items()} == {
        "a": False,
        "x": True,
        "jump": True,
        "doc.pdf?x": True,
    }
    assert not {"/no/x", "/doc.pdf?x"} & set(site.asked())
    with pytest.raises(ConnectorError, match="robots"):
        made(url).fetch(Ref(site.url("/no/x")))
    with pytest.raises(SourceError, match="robots"):
        listed(url, user_agent="other/1.0")
    for status, allowed in ((404, True), (403, True), (500, False), (503, False)):
        site.page("/robots.txt", status=status)
        if allowed:
            assert listed(site.url("/a"))
        else:
            with pytest.raises(SourceError, match=str(status)):
                listed(site.url("/a"))


class Clock:
    """Records how long a client would have slept."""

    def __init__(self, client: Client) -> None:
        self.slept: list[float] = []
        client.sleep = self.slept.append


def test_requests_keep_a_distance_and_failures_are_tried_again(site: Site) -> None:
    site.page("/robots.txt", "User-agent: *\nCrawl-delay: 7")
    site.page("/a", "a")
    client = Client(site.url(), pause=3, allow_hosts=["127.0.0.1"])
    clock = Clock(client)
    for _ in range(3):
        client.get(site.url("/a"))
    assert [round(pause) for pause in clock.slept] == [3, 7, 7]
    client = Client(site.url(), pause=0, retries=3, allow_hosts=["127.0.0.1"])
    site.page("/robots.txt", "")
    clock = Clock(client)
    site.page("/a", "a", status=503).times = 2
    assert client.get(site.url("/a")).status == 200
    assert clock.slept == [1, 2]
    site.page("/a", "a", status=429, Retry_After="20").times = 1
    assert client.get(site.url("/a")).status == 200
    site.page("/a", "a", status=429, Retry_After="99999").times = 1
    client.get(site.url("/a"))
    assert clock.slept[2:] == [20, 60]
    clock.slept.clear()
    site.page("/a", "abc").cut = True
    with pytest.raises(ConnectorError, match="cannot be reached"):
        client.get(site.url("/a"))
    assert clock.slept == [1, 2, 4]


def test_limits(site: Site) -> None:
    site.page("/big", "x" * 2_000)
    site.page("/bomb", gzip.compress(b"x" * 50_000_000), Content_Encoding="gzip")
    for path in ("/big", "/bomb"):
        (ref,) = listed(site.url(path), max_bytes=1_000).values()
        assert "more than 1,000 bytes" in (ref.skip or "")
    site.page("/round", status=302, Location="/round")
    with pytest.raises(SourceError, match="redirects"):
        listed(site.url("/round"))
    site.page("/file", status=302, Location="file:///etc/passwd")
    with pytest.raises(SourceError, match="not a web address"):
        listed(site.url("/file"))


@pytest.mark.parametrize(
    "body",
    [
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><urlset><url><loc>http://x/&a;</loc></url></urlset>',
        '<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><urlset><url><loc>http://x/&b;</loc></url></urlset>',
        "<urlset><url>",
    ],
)
def test_xml_that_does_harm_is_refused(site: Site, body: str) -> None:
    site.page("/s.xml", body, Content_Type="application/xml")
    with pytest.raises(SourceError, match="cannot be read as XML"):
        listed(site.url("/s.xml"))


def test_secrets_go_to_their_own_site_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_PW", "p/w:ä")
    monkeypatch.setenv("WEB_TOKEN", "t0ken-t0ken")
    with serve() as other:
        other.page("/b", "b")
        site.page("/a", status=302, Location=other.url("/b"))
        for options, sent in (
            ({"authorization": "Bearer ${WEB_TOKEN}"}, "Bearer t0ken-t0ken"),
            ({}, "Basic bWU6cC93OsOk"),
        ):
            url = (
                site.url("/a")
                if options
                else site.url("/a").replace("://", "://me:${WEB_PW}@").replace("me:", "${WEB_ME}:")
            )
            monkeypatch.setenv("WEB_ME", "me")
            site.headers.clear()
            other.headers.clear()
            connector = made(url, **options)
            assert [ref.path for ref in connector.refs()] == [other.url("/b")]
            assert {headers.get("Authorization") for headers in site.headers} == {sent}
            assert not [headers for headers in other.headers if "Authorization" in headers]
            assert "${" not in str(connector.root)
            assert "t0ken" not in repr(vars(connector)) + repr(vars(connector._client))
    for wrong in ({"authorization": "Bearer abcdefg"}, {}):
        with pytest.raises(ConfigError) as refused:
            WebConnector("https://x/" if wrong else "https://me:abcdefg@x/", **wrong)
        assert "abcdefg" not in str(refused.value)


# --- Sync --------------------------------------------------------------------------------------------------------


def test_sync_adds_changes_and_deletes(site: Site, collection: Collection) -> None:
    for number in range(4):
        site.page(f"/{number}", f"<h1>Page</h1><p>Trees number {number}", ETag=f'"{number}"')
    url = sitemap(site, "/0", "/1", "/2", "/3")
    assert collection.sync(url, options=OPTIONS).added == 4
    site.log.clear()
    assert collection.sync().unchanged == 4
    assert site.asked("GET") == ["/sitemap.xml"]
    site.page("/0", "Bees", ETag='"new"')
    site.page("/1", status=404)
    site.page("/9", "Nine")
    report = collection.sync(sitemap(site, "/0", "/1", "/2", "/3", "/9"))
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 1, 2)
    assert collection.search("bees", mode="keyword")[0].uri == site.url("/0")
    report = collection.sync(site.url("/9"), name="nine", options=OPTIONS)
    assert "already in the collection, from the source" in report.failed[0].error
    sitemap(site, "/0")
    with pytest.raises(MassDeleteError):
        collection.sync(url)


def test_documents_of_unreachable_pages_are_kept(site: Site, collection: Collection) -> None:
    url = linked(site)
    assert collection.sync(url, options=OPTIONS | {"links": True}).added == 5
    site.page("/docs/a.html", status=500)  # what only it links to is not seen
    report = collection.sync(url)
    assert (report.removed, report.unchanged) == (0, 3)
    assert [failed.uri for failed in report.failed if failed.error.startswith("1 pages")] == [url]
    assert len(collection.documents()) == 5
    site.page("/docs/a.html", "no more links, but Oaks")
    assert collection.sync(url).removed == 1
    for broken in (Site.page(site, "/docs/", status=503), Site.page(site, "/docs/", status=404)):
        site.pages["/docs/"] = broken
        with pytest.raises(SourceError):
            collection.sync(url)
    assert len(collection.documents()) == 4


def test_a_site_that_goes_away_in_the_middle(collection: Collection) -> None:
    with serve() as site:
        for number in range(6):
            site.page(f"/{number}", f"Trees number {number}")
        url = sitemap(site, *(f"/{number}" for number in range(6)))
        assert collection.sync(url, options=OPTIONS).added == 6
        for number in range(2, 6):
            site.page(f"/{number}", "Trees").cut = True
        report = collection.sync(url)
        assert (report.removed, report.unchanged, len(report.failed)) == (0, 2, 4)
    with pytest.raises(SourceError, match="cannot be reached"):
        collection.sync(url)
    assert len(collection.documents()) == 6
