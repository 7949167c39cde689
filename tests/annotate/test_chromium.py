"""Labeling in a real browser, by keys: nothing is lost when the server is killed, and names are text."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgedistill.annotate.batch import batch
from edgedistill.data.label_file import read_labels
from edgedistill.labeling import sources
from tests.helpers.annotation import photos, served
from tests.helpers.browser import CHROMIUM, Pipe, console_messages, opened
from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
WAIT_S = 60.0
SHOWN = "document.body.dataset.path || ''"
IDLE = f"({SHOWN}) || !document.querySelector('#cluster').hidden || !document.querySelector('#done').hidden"


def until(pipe: Pipe, expression: str) -> Any:
    """Wait until JavaScript gives something that is true."""
    deadline = time.monotonic() + WAIT_S
    while not (outcome := pipe.evaluate(expression)):
        assert time.monotonic() < deadline, (expression, pipe.evaluate("document.body.innerText"))
        time.sleep(0.02)
    return outcome


def press(pipe: Pipe, key: str) -> None:
    until(pipe, IDLE)
    text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
    for kind in ("keyDown", "keyUp"):
        pipe.call("Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {}))


def text_of(pipe: Pipe, selector: str) -> str:
    return str(pipe.evaluate(f"document.querySelector({selector!r}).innerText"))


def answer(pipe: Pipe, name: str) -> str:
    """Label the picture that is shown by the key of a class, or by its name where it has none yet; returns its path."""
    path = str(until(pipe, SHOWN))
    pairs = pipe.evaluate(
        "JSON.stringify([...document.querySelectorAll('#classes button')].map(button => "
        "['span', 'kbd'].map(tag => button.querySelector(tag).textContent)))"
    )
    key = dict(json.loads(pairs)).get(name)
    if key is None:
        press(pipe, "n")
        until(pipe, "document.activeElement.id === 'class'")
        pipe.call("Input.insertText", text=name)
        press(pipe, "Enter")
    else:
        press(pipe, key)
    until(pipe, f"({IDLE}) && ({SHOWN}) !== {path!r}")
    return path


def color(path: str) -> str:
    return "rgb"[int(path[0])]


def save_screenshot(pipe: Pipe, name: str) -> None:
    if folder := os.environ.get("REPORT_SCREENSHOTS"):
        picture = pipe.call("Page.captureScreenshot")["data"]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture))


def go(pipe: Pipe, link: str) -> None:
    pipe.events.clear()
    pipe.call("Page.navigate", url=link)
    for _ in range(100):
        try:
            until(pipe, IDLE)
            return
        except AssertionError as error:
            if "-32000" not in str(error):  # the link's page has just given way to the real one
                raise
    raise AssertionError("the page loads without end")


@contextlib.contextmanager
def command(folder: Path, n: int, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`edgedistill annotate` in a process of its own, and the link that it prints."""
    arguments = ["annotate", folder, "--n", n, "--port", port, "--runs", folder.parent / "runs"]
    argv = [sys.executable, "-m", "edgedistill", *map(str, arguments)]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[1].startswith("Open http://127.0.0.1:"), lines
        link = lines[1].split()[1]
        yield process, link
    finally:
        process.kill()
        process.communicate()


def test_twenty_pictures_are_labeled_by_keys_and_a_killed_server_loses_none(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with opened(tmp_path / "profile", "about:blank") as pipe:
        with command(folder, 20, port) as (process, link):
            go(pipe, link)
            assert pipe.evaluate("location.search") == "", "the token does not stay in the address"
            labeled = {path: color(path) for path in (answer(pipe, color(pipe.evaluate(SHOWN))) for _ in range(9))}
            skipped = until(pipe, SHOWN)
            press(pipe, "s")
            until(pipe, f"({SHOWN}) && ({SHOWN}) !== {skipped!r}")
            wrong = answer(pipe, "r")
            press(pipe, "u")
            until(pipe, f"({SHOWN}) === {wrong!r}")
            labeled[answer(pipe, color(wrong))] = color(wrong)
            assert text_of(pipe, "#progress") == "10 of 20"
            save_screenshot(pipe, "annotate-light")
            assert console_messages(pipe) == []
            process.send_signal(signal.SIGKILL)
            process.wait()
            before = until(pipe, SHOWN)
            press(pipe, "1")
            until(pipe, "document.querySelector('#message').innerText.includes('does not answer')")
            assert until(pipe, SHOWN) == before, "the next picture shows once the answer is saved"
        assert {path: label.name for path, label in read_labels(folder / "labels.csv").items() if label.name} == labeled
        with command(folder, 10, port) as (process, link):
            go(pipe, link)
            assert text_of(pipe, "#guess")
            for _ in range(10):
                path = answer(pipe, color(until(pipe, SHOWN)))
                labeled[path] = color(path)
            assert not pipe.evaluate("document.querySelector('#done').hidden")
            pipe.evaluate("document.querySelector('#close').click()")
            output, _ = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0 and "10 pictures labeled; 20 have a label" in output
            until(pipe, "document.body.dataset.ended")
    labels = read_labels(folder / "labels.csv")
    assert {path: label.name for path, label in labels.items() if label.name} == labeled and len(labeled) == 20
    assert {label.how for label in labels.values()} == {"suggested", "random", ""}


def test_interrupt_ends_the_server(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    with command(folder, 5, 0) as (process, _):
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130 and output == "0 pictures labeled; 0 have a label\n"
    assert not (folder / "labels.csv").exists()


@pytest.mark.parametrize(("width", "scheme"), [(1100, "dark"), (360, "light")])
def test_clusters_and_tabs_and_names_that_look_like_html(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, scheme: str
) -> None:
    monkeypatch.setattr(sources, "PACKAGES", {})
    folder = photos(tmp_path / "photos")
    for path in list(folder.glob("*.png")):
        path.rename(path.with_name(f"{path.stem}<img src=x onerror=console.error(1)>&amp;%2e.png"))
    hostile = "<script>console.error(2)</script>" + "name" * 30
    with served(batch(folder, 12, tmp_path / "runs")) as client:
        link = f"http://localhost:{client.port}/?token={client.token}"
        with opened(tmp_path / "profile", "about:blank", width, scheme) as pipe:
            go(pipe, link)
            first = answer(pipe, hostile)
            assert hostile in text_of(pipe, "#classes")
            press(pipe, "c")
            until(pipe, "!document.querySelector('#cluster').hidden")
            count = pipe.evaluate("document.querySelectorAll('#grid button').length")
            assert count > 2 and pipe.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            pipe.evaluate("document.querySelector('#grid button').click()")
            save_screenshot(pipe, f"annotate-{width}-{scheme}")
            press(pipe, "1")
            until(pipe, "document.querySelector('#cluster').hidden")
            hows = [label.how for label in read_labels(folder / "labels.csv").values()]
            assert hows.count("bulk") == count - 1
            press(pipe, "u")
            until(pipe, "document.querySelector('#classes small').textContent === '1'")
            press(pipe, "x")
            until(pipe, "document.querySelector('#progress').innerText === '2 of 12'")
            path = until(pipe, SHOWN)
            body = json.dumps({"tab": "another tab", "path": path, "name": "nut", "expected": {}})
            options = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": body}
            pipe.evaluate(f"fetch('/label', {json.dumps(options)})")
            press(pipe, "1")
            until(pipe, "document.querySelector('#message').innerText.includes('meanwhile: nut')")
            assert console_messages(pipe) == [] or all("409" in line for line in console_messages(pipe))
            assert pipe.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls horizontally"
            assert pipe.evaluate("[...document.images].every(image => !image.complete || image.naturalWidth > 0)")
    labels = read_labels(folder / "labels.csv")
    assert labels[first].name == hostile and labels[path].name == "nut"
    assert sorted(label.how for label in labels.values() if label.how) == sorted(
        ["suggested", "unusable", labels[path].how]
    )
