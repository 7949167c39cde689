"""A real browser, for tests: Chromium through its debugging pipe.

The DevTools protocol, NUL-terminated messages on descriptors 3 and 4.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
