"""An annotation server in this process, and a client that sends whatever headers a test wants."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from edgedistill.annotate.batch import Batch
from edgedistill.annotate.serve import serve
from tests.helpers import textures

KINDS = 3
EACH = 12
TAB = "tab-of-a-test"
NEW: dict[str, str] = {"name": "", "how": ""}


def photos(root: Path) -> Path:
    """root/KIND-NN.png: 36 pictures of three colors, no two alike."""
    root.mkdir()
    colors = 60 * np.eye(KINDS) - 20
    for kind in range(KINDS):
        for row, square in enumerate(textures.squares(22 * textures.textures(EACH, kind) + colors[kind])):
            Image.fromarray(square).save(root / f"{kind}-{row:02d}.png")
    return root


@dataclass(kw_only=True)
class Answer:
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(kw_only=True)
class Client:
    """A browser without its rules: every header is what the test says, or what the page would send."""

    port: int
    token: str
    cookie: str = ""

    def request(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        """Send a request; a header that is None is left out, and `_` stands for a hyphen."""
        own = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie or None}
        if method != "GET":
            own |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        sent = own | {name.replace("_", "-"): text for name, text in headers.items()}
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, text in sent.items():
                if text is not None:
                    connection.putheader(name, text)
            if content is not None:
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content)
            response = connection.getresponse()
            received = {name.lower(): text for name, text in response.getheaders()}
            return Answer(status=response.status, headers=received, body=response.read())

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str | None) -> Answer:
        return self.request("POST", path, body, **headers)

    def enter(self) -> Answer:
        """Exchange the token for the cookie, and keep it."""
        answer = self.get(f"/?token={self.token}")
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    def label(self, path: str, name: str, *, tab: str = TAB, expected: dict[str, str] = NEW) -> Answer:
        return self.post("/label", {"tab": tab, "path": path, "name": name, "expected": expected})


@contextlib.contextmanager
def served(batch: Batch) -> Iterator[Client]:
    """The page of a batch on a free port; it must have ended by itself, or ends within seconds."""
    started, servers, links = threading.Event(), [], []

    def ready(link: str, server: uvicorn.Server) -> None:
        links.append(link)
        servers.append(server)
        started.set()

    thread = threading.Thread(target=serve, args=(batch, 0, ready))
    thread.start()
    try:
        assert started.wait(30)
        address, _, token = links[0].partition("/?token=")
        yield Client(port=int(address.rpartition(":")[2]), token=token)
    finally:
        servers[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()
