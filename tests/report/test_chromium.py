"""The report in a real browser: nothing on its console, no request to anywhere, no sideways scrolling.

Chromium is spoken to over its debugging pipe (DevTools protocol, messages ended by NUL on descriptors 3 and 4).
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
from tests.helpers.report_runs import make

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
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
    """A DevTools session: commands are sent and answered in order, events are kept as they come."""

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
        value: dict[str, Any] = json.loads(message)
        return value

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        target = {"sessionId": self.session} if self.session else {}
        body = json.dumps({"id": self.count, "method": method, "params": params, **target}).encode() + b"\0"
        while body:
            body = body[os.write(self.send, body) :]
        while (message := self.read()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def wait(self, method: str) -> None:
        while all(event.get("method") != method for event in self.events):
            self.events.append(self.read())

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, awaitPromise=True)["result"].get("value")


def _above_ten(descriptor: int) -> int:
    """Clear of 3 and 4, which the browser wants for itself."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return moved


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Pipe]:
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    theirs_in, theirs_out = _above_ten(theirs_in), _above_ten(theirs_out)
    starter = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    argv = ["bash", "-c", starter, str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        argv, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    pipe = Pipe(ours_out, ours_in)
    try:
        yield pipe
        pipe.session = ""
        pipe.call("Browser.close")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)


@contextlib.contextmanager
def opened(profile: Path, url: str, width: int = 1100, scheme: str = "light") -> Iterator[Pipe]:
    """The page in a window `width` CSS pixels wide, loaded, and given a moment to misbehave."""
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
        pipe.value("new Promise(done => setTimeout(done, 500))")
        yield pipe


def complaints(pipe: Pipe) -> list[str]:
    """Console messages, exceptions, log entries, as the browser reported them."""
    heard = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
    return [json.dumps(event["params"]) for event in pipe.events if event.get("method") in heard]


def requests(pipe: Pipe, page: str) -> list[str]:
    """Every address asked for, but the page's own and those that carry their content in themselves."""
    urls = [
        event["params"]["request"]["url"] for event in pipe.events if event.get("method") == "Network.requestWillBeSent"
    ]
    assert page in urls, "the page's own request is always seen; if not, nothing would be"
    return [url for url in urls if url != page and not url.startswith("data:")]


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that notes what is asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light"), (360, "dark")])
def test_report_is_quiet_and_fits(tmp_path: Path, width: int, scheme: str) -> None:
    hostile = ("<script>console.error('ran')</script>", '"><img src=http://127.0.0.1:9/x onerror=console.error(1)>')
    run = make(tmp_path, classes=hostile)
    page = render.write(run)[1].as_uri()
    with opened(tmp_path / "profile", page, width, scheme) as pipe:
        assert complaints(pipe) == []
        assert requests(pipe, page) == []
        assert pipe.value("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert pipe.value("document.scripts.length") == 0
        assert pipe.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert pipe.value("document.querySelectorAll('.plot svg').length") == 6
        folder = os.environ.get("REPORT_SCREENSHOTS")
        if folder:
            picture = pipe.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            (Path(folder) / f"report-{width}-{scheme}.png").write_bytes(base64.b64decode(picture))


def test_dark_changes_paper_and_plots(tmp_path: Path) -> None:
    page = render.write(make(tmp_path))[1].as_uri()
    colours = (
        "[getComputedStyle(document.body).backgroundColor,"
        "getComputedStyle(document.querySelector('.plot svg text')).fill].join()"
    )
    with opened(tmp_path / "light", page) as pipe:
        light = pipe.value(colours)
    with opened(tmp_path / "dark", page, scheme="dark") as pipe:
        dark = pipe.value(colours)
    assert light == "rgb(255, 255, 255),rgb(29, 35, 41)"
    assert dark == "rgb(18, 22, 26),rgb(230, 234, 238)"


def test_the_watch_hears_a_console_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><title>x</title><script>console.error('here')</script>", encoding="utf-8")
    with opened(tmp_path / "profile", bad.as_uri()) as pipe:
        assert any("here" in one for one in complaints(pipe))


def test_the_watch_sees_a_request(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    bad = tmp_path / "bad.html"
    bad.write_text(f'<!DOCTYPE html><title>x</title><img src="{address}/seen.png" alt="">', encoding="utf-8")
    with opened(tmp_path / "profile", bad.as_uri()) as pipe:
        assert requests(pipe, bad.as_uri()) == [f"{address}/seen.png"]
    assert "/seen.png" in asked


def test_the_page_forbids_itself_to_load(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    """Should an escape ever be missed, the page's own policy still refuses scripts and the network."""
    address, asked = server
    page = render.write(make(tmp_path))[1]
    smuggled = f'<img src="{address}/smuggled.png" alt=""><script>document.title = "taken"</script></main>'
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", smuggled), encoding="utf-8")
    with opened(tmp_path / "profile", page.as_uri()) as pipe:
        assert len([one for one in complaints(pipe) if "Content Security Policy" in one]) == 2
        assert pipe.value("document.title") == "demo: edgedistill report"
    assert asked == []
