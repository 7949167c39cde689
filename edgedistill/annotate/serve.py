"""The annotation page's server, on 127.0.0.1 alone."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from edgedistill.annotate.app import Page, application
from edgedistill.annotate.batch import Batch
from edgedistill.annotate.guard import Access, guarded
from edgedistill.errors import InputError

HOST = "127.0.0.1"
GRACE_S = 2  # for answers under way when the server closes


def serve(batch: Batch, port: int, ready: Callable[[str, uvicorn.Server], None]) -> None:
    """Serve the page until its button, Ctrl-C or SIGTERM.

    Args:
        batch: what is labeled.
        port: 0 for a free one.
        ready: is called with the page's link once connections are accepted.

    Raises:
        InputError: the port is not free.
    """
    with _listener(port) as listener:
        number = listener.getsockname()[1]
        access = Access(cookie=f"edgedistill-{number}")

        def close() -> None:
            server.should_exit = True

        app = guarded(application(Page(batch=batch, close=close)), access)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # it would hold the token
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        ready(f"http://{HOST}:{number}/?token={access.token}", server)
        server.run(sockets=[listener])


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(f"--port {port}: {error.strerror}", "name another one, or none for a free one") from None
    return listener
