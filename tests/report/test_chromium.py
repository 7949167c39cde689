"""The report in a real browser: no console messages, no requests, no horizontal scrolling.

The tests control Chromium through its debugging pipe (DevTools protocol, NUL-terminated messages on descriptors 3 and
4).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgedistill.report import render
from tests.helpers.report_runs import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


class Pipe:
    """A DevTools session: commands are answered in order, events are collected."""

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive = send, receive
        self.pending, self.count, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.pending:
            block = os.read(self.receive, 1 << 16)
            assert block, "Chromium closed its end of the pipe"
            self.pending += block
        message, _, self.pending = self.pending.partition(b"\0")
        return dict(json.loads(message))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        target = {"sessionId": self.session} if self.session else {}
        body = json.dumps({"id": self.count, "method": method, "params": params, **target}).encode() + b"\0"
        while body:
            body = body[os.write(self.send, body) :]
        while (message := self.read()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return dict(message["result"])

    def wait(self, method: str) -> None:
        while all(event.get("method") != method for event in self.events):
            self.events.append(self.read())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, awaitPromise=True)["result"].get("value")


def above_ten(descriptor: int) -> int:
    """Move the descriptor to 10 or above; the browser uses 3 and 4."""
    duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return duplicate


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Pipe]:
    (browser_in, test_out), (test_in, browser_out) = os.pipe(), os.pipe()
    browser_in, browser_out = above_ten(browser_in), above_ten(browser_out)
    starter = f'exec "$0" "$@" 3<&{browser_in} 4>&{browser_out}'
    argv = ["bash", "-c", starter, str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        argv, pass_fds=(browser_in, browser_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(browser_in)
    os.close(browser_out)
    pipe = Pipe(test_out, test_in)
    try:
        yield pipe
        pipe.session = ""
        pipe.call("Browser.close")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()
        os.close(test_out)
        os.close(test_in)


@contextlib.contextmanager
def opened(profile: Path, url: str, width: int = 1100, scheme: str = "light") -> Iterator[Pipe]:
    """The page in a window `width` CSS pixels wide, half a second after it loaded."""
    with chromium(profile) as pipe:
        target = pipe.call("Target.createTarget", url="about:blank")["targetId"]
        pipe.session = pipe.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            pipe.call(f"{domain}.enable")
        pipe.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        pipe.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        pipe.events.clear()
        pipe.call("Page.navigate", url=url)
        pipe.wait("Page.loadEventFired")
        pipe.evaluate("new Promise(done => setTimeout(done, 500))")
        yield pipe


def console_messages(pipe: Pipe) -> list[str]:
    """Console messages, exceptions and log entries, as JSON."""
    methods = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
    return [json.dumps(event["params"]) for event in pipe.events if event.get("method") in methods]


def requests(pipe: Pipe, page: str) -> list[str]:
    """Every requested URL, except the page's own and data URLs."""
    urls = [
        event["params"]["request"]["url"] for event in pipe.events if event.get("method") == "Network.requestWillBeSent"
    ]
    assert page in urls, "the page's own request was not recorded, so no other would be"
    return [url for url in urls if url != page and not url.startswith("data:")]


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback, and the list of paths requested from it."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", requested
        http_server.shutdown()
        thread.join()


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light"), (360, "dark")])
def test_report_has_no_messages_or_requests_and_fits_width(tmp_path: Path, width: int, scheme: str) -> None:
    hostile = ("<script>console.error('ran')</script>", '"><img src=http://127.0.0.1:9/x onerror=console.error(1)>')
    run = make_run(tmp_path, classes=hostile)
    page = render.write(run)[1].as_uri()
    with opened(tmp_path / "profile", page, width, scheme) as pipe:
        assert console_messages(pipe) == []
        assert requests(pipe, page) == []
        assert pipe.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls horizontally"
        assert pipe.evaluate("document.scripts.length") == 0
        assert pipe.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert pipe.evaluate("document.querySelectorAll('.plot svg').length") == 6
        folder = os.environ.get("REPORT_SCREENSHOTS")
        if folder:
            picture = pipe.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            (Path(folder) / f"report-{width}-{scheme}.png").write_bytes(base64.b64decode(picture))


def test_dark_scheme_changes_page_and_plots(tmp_path: Path) -> None:
    page = render.write(make_run(tmp_path))[1].as_uri()
    colors = (
        "[getComputedStyle(document.body).backgroundColor,"
        "getComputedStyle(document.querySelector('.plot svg text')).fill].join()"
    )
    with opened(tmp_path / "light", page) as pipe:
        light = pipe.evaluate(colors)
    with opened(tmp_path / "dark", page, scheme="dark") as pipe:
        dark = pipe.evaluate(colors)
    assert light == "rgb(255, 255, 255),rgb(29, 35, 41)"
    assert dark == "rgb(18, 22, 26),rgb(230, 234, 238)"


def test_console_error_is_recorded(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><title>x</title><script>console.error('here')</script>", encoding="utf-8")
    with opened(tmp_path / "profile", bad.as_uri()) as pipe:
        assert any("here" in message for message in console_messages(pipe))


def test_request_is_recorded(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, requested = server
    bad = tmp_path / "bad.html"
    bad.write_text(f'<!DOCTYPE html><title>x</title><img src="{address}/image.png" alt="">', encoding="utf-8")
    with opened(tmp_path / "profile", bad.as_uri()) as pipe:
        assert requests(pipe, bad.as_uri()) == [f"{address}/image.png"]
    assert "/image.png" in requested


def test_content_security_policy_blocks_scripts_and_requests(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    """If an escape is missed, the page's policy still blocks scripts and the network."""
    address, requested = server
    page = render.write(make_run(tmp_path))[1]
    injected = f'<img src="{address}/injected.png" alt=""><script>document.title = "changed"</script></main>'
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", injected), encoding="utf-8")
    with opened(tmp_path / "profile", page.as_uri()) as pipe:
        assert len([message for message in console_messages(pipe) if "Content Security Policy" in message]) == 2
        assert pipe.evaluate("document.title") == "demo: edgedistill report"
    assert requested == []
