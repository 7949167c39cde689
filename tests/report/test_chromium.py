"""The report in a real browser: no console messages, no requests, no horizontal scrolling."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.labels.findings import Audit, AuditedImage, Finding
from edgedistill.report import audit, render
from tests.helpers.browser import CHROMIUM, Pipe, console_messages, opened
from tests.helpers.report_runs import make_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


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
        assert pipe.evaluate("document.querySelectorAll('.plot svg').length") == 9
        folder = os.environ.get("REPORT_SCREENSHOTS")
        if folder:
            picture = pipe.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            (Path(folder) / f"report-{width}-{scheme}.png").write_bytes(base64.b64decode(picture))


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (360, "dark")])
def test_audit_has_no_messages_or_requests_and_fits_width(tmp_path: Path, width: int, scheme: str) -> None:
    hostile = '"><img src=http://127.0.0.1:9/x onerror=console.error(1)>' + "name" * 40
    pictures = [AuditedImage(name=f"{hostile}{row}", label=hostile, split="train", row=row) for row in range(3)]
    record = Audit(
        name=hostile,
        source=hostile,
        licence=hostile,
        images=3,
        counts={hostile: {"train": 3}},
        sizes={},
        findings=(
            Finding(kind="copies", images=tuple(pictures), note=hostile),
            *(Finding(kind="blank", images=(picture,), note=hostile) for picture in pictures),
        ),
        notes=(hostile,),
        teacher=hostile,
        px=64,
        seconds=1.0,
    )
    page = audit.write(record, np.zeros((3, 64, 64, 3), dtype=np.uint8), tmp_path / "page").as_uri()
    with opened(tmp_path / "profile", page, width, scheme) as pipe:
        assert console_messages(pipe) == []
        assert requests(pipe, page) == []
        assert pipe.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls horizontally"
        assert pipe.evaluate("document.images.length") == 6
        assert pipe.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


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
