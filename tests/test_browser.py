"""Poky as a browser meets it: Debian's Chromium opens pages of another origin, which try things.

A page reports to the server that it came from; nothing drives the browser.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.service import Client
from tests.support.chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage"),
)

# A pixel, and a picture that would run a script if it were a page.
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
_RUNS = "<script>new Image().src = 'http://{site}/ran?{what}'</script>"


class Pages:
    """A web server with pages of a test's own, which collects what they report."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.reports: queue.Queue[Any] = queue.Queue()
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.site = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, pages: Pages, *arguments: Any) -> None:
        self._pages = pages
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._pages.asked.append(self.path)
        page = self._pages.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write((page or "").encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._pages.reports.put(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    pages = Pages()
    yield pages
    pages.close()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with Chain(tmp_path_factory.mktemp("chain")) as chain:
        chain.poky("bucket", "create", "b")
        yield chain


@pytest.fixture(scope="module")
def sharing(pages: Pages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A chain that the origin of the pages may use."""
    given: dict[str, dict[str, object]] = {"poky": {"poky_cors_origins": [f"http://{pages.site}"]}}
    with Chain(tmp_path_factory.mktemp("sharing"), given=given) as chain:
        chain.poky("bucket", "create", "b")
        yield chain


@contextmanager
def browser(url: str, profile: Path) -> Iterator[None]:
    """Chromium with one page open, and a profile of its own."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: make packages"
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", url],
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tried(pages: Pages, folder: Path, script: str, *, body: str = "") -> Any:
    """Open a page whose script has `report(…)`, and return what it reported."""
    pages.pages["/"] = f"""<!DOCTYPE html><meta charset="utf-8">{body}<script>
        const report = what => fetch('/', {{method: 'POST', body: JSON.stringify(what)}});
        const attempt = promise => promise.catch(error => error.name);
        const shown = (tag, url) => new Promise(done => {{
            const each = document.createElement(tag);
            each.onload = () => done('shown');
            each.onerror = () => done('not shown');
            each.src = url;
            document.body.append(each);
        }});
        (async () => {{ {script} }})().catch(error => report('' + error));
        </script>"""
    with browser(f"http://{pages.site}/", folder / "profile"):
        return pages.reports.get(timeout=60)


def paths(chain: Chain) -> dict[str, str]:
    """By where a page could reach it: the chain, one instance, its admin listener."""
    instance = chain.instances[0]
    return {
        "nginx": f"http://127.0.0.1:{chain.http_port}",
        "varnish": f"http://127.0.0.1:{chain.cache_port}",
        "service": f"http://127.0.0.1:{instance.port}",
        "by name": f"http://localhost:{chain.http_port}",
    }


def test_a_page_of_another_origin_stores_and_reads_nothing(
    chain: Chain, pages: Pages, tmp_path: Path
) -> None:
    client = Client(chain.http_port)
    client.put("/kv/b/kept", "before")
    admin = f"http://127.0.0.1:{chain.instances[0].admin_port}"
    script = f"""
        const bases = {json.dumps(list(paths(chain).values()))};
        const found = [];
        for (const [number, base] of bases.entries()) {{
            const send = (key, options) => attempt(
                fetch(`${{base}}/kv/b/${{key}}${{number}}`, options).then(answer => answer.type));
            const plain = {{method: 'POST', body: 'evil', mode: 'no-cors'}};
            navigator.sendBeacon(`${{base}}/kv/b/beacon${{number}}`, 'evil');
            const form = document.createElement('form');
            form.action = `${{base}}/kv/b/form${{number}}`;
            form.method = 'POST';
            form.enctype = 'text/plain';
            form.target = `frame${{number}}`;
            form.innerHTML = '<input name=evil value=evil>';
            const frame = document.createElement('iframe');
            frame.name = form.target;
            document.body.append(frame, form);
            const submitted = new Promise(done => frame.onload = done);
            form.submit();
            await submitted;
            found.push(
                await send('plain', plain),
                await send('put', {{method: 'PUT', body: 'evil'}}),
                await send('post', {{method: 'POST', body: 'evil'}}),
                await send('delete', {{method: 'DELETE'}}),
                await attempt(fetch(`${{base}}/kv/b/kept`).then(answer => answer.text())),
                await attempt(fetch(`${{base}}/multi/b`, {{method: 'POST', body: '[]'}})),
            );
        }}
        found.push(
            await attempt(fetch('{admin}/buckets/evil', {{method: 'PUT'}})),
            await attempt(fetch('{admin}/buckets').then(answer => answer.text())),
        );
        report(found);
    """
    found = tried(pages, tmp_path, script, body="<body>")
    refused = ["opaque", *["TypeError"] * 5]
    assert found == [*refused * len(paths(chain)), "TypeError", "TypeError"]
    assert [each["key"] for each in client.get("/kv/b").json()["keys"]] == ["kept"]
    assert client.get("/kv/b/kept").body == b"before"


def test_a_page_of_an_allowed_origin_reads_and_writes(
    sharing: Chain, pages: Pages, tmp_path: Path
) -> None:
    Client(sharing.http_port).put("/kv/b/kept", "before")
    script = f"""
        const found = [];
        for (const base of {json.dumps([*paths(sharing).values()])}) {{
            const put = await fetch(`${{base}}/kv/b/k`, {{
                method: 'PUT', body: 'from a page',
                headers: {{'Content-Type': 'text/x-page', 'Authorization': 'Bearer x'}},
            }});
            const tag = put.headers.get('ETag');
            const first = await fetch(`${{base}}/kv/b/k`, {{cache: 'no-store'}});
            const again = await fetch(`${{base}}/kv/b/k`, {{cache: 'no-store'}});
            const stale = await fetch(`${{base}}/kv/b/k`, {{
                method: 'PUT', body: 'x', headers: {{'If-Match': '"1-a"'}}}});
            const gone = await fetch(`${{base}}/kv/b/missing`);
            found.push([
                put.status, tag == again.headers.get('ETag'), await first.text(),
                await again.text(), again.headers.get('Content-Type'),
                again.headers.get('X-Cache'), stale.status, gone.status,
                await attempt(fetch(`${{base}}/kv/b/k`, {{credentials: 'include'}})),
            ]);
        }}
        report(found);
    """
    found = tried(pages, tmp_path, script)
    value = ["from a page"] * 2
    hits = {"nginx": "HIT", "varnish": "HIT", "service": None, "by name": "HIT"}
    assert found == [
        [200, True, *value, "text/x-page", hits[where], 412, 404, "TypeError"]
        for where in paths(sharing)
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_what_other_sites_may_show(
    chain: Chain, sharing: Chain, pages: Pages, tmp_path: Path, shared: bool
) -> None:
    one = sharing if shared else chain
    client = Client(one.http_port)
    client.put("/kv/b/png", _PNG, content_type="image/png")
    client.put("/kv/b/script", "loaded = true", content_type="text/javascript")
    client.put("/kv/b/text", "loaded = true", content_type="text/plain")
    for what, content_type in (("html", "text/html"), ("xhtml", "application/xhtml+xml")):
        page = _RUNS.format(site=pages.site, what=what)
        client.put(f"/kv/b/{what}", f"<html>{page}</html>", content_type=content_type)
    picture = f"<svg xmlns='http://www.w3.org/2000/svg'>{_RUNS.format(site=pages.site, what='svg')}"
    client.put("/kv/b/svg", f"{picture}</svg>", content_type="image/svg+xml")
    pages.asked.clear()
    base = f"http://127.0.0.1:{one.http_port}/kv/b"
    script = f"""
        const found = [];
        for (let round = 0; round < 2; round++)
            found.push(await shown('img', '{base}/png'), await shown('script', '{base}/script'),
                await shown('script', '{base}/text'));
        for (const key of ['html', 'xhtml', 'svg']) await shown('iframe', `{base}/${{key}}`);
        await new Promise(done => {{
            const marker = new Image();
            marker.onerror = done;
            marker.src = '/marker';
        }});
        report(found);
    """
    found = tried(pages, tmp_path, script, body="<body>")
    seen = "shown" if shared else "not shown"
    assert found == [seen, seen, "not shown"] * 2  # the second time from the cache
    assert "/marker" in pages.asked
    assert not [path for path in pages.asked if path.startswith("/ran")]
