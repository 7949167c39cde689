"""The annotation page's requests: the pictures and labels of a session in, every change on disk before the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from edgedistill.agent.pictures import reason
from edgedistill.annotate.answers import ConflictError, class_name
from edgedistill.annotate.batch import Batch, OutsideError
from edgedistill.data.label_file import Label
from edgedistill.errors import InputError

HERE = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
MAX_BODY = 8 * 2**20  # bytes
B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
Tab = Annotated[str, Field(min_length=8, max_length=64)]


class Shown(BaseModel):
    """The label that a tab shows for a picture."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = ""
    how: str = ""


class LabelChange(BaseModel):
    """A key that was pressed at a picture: a class, or `unusable`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tab: Tab
    path: str
    name: str = ""
    unusable: bool = False
    expected: Shown


class ClusterChange(BaseModel):
    """A class that was accepted for pictures of a cluster, none of which shows a label."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tab: Tab
    cluster: int
    name: str
    paths: Annotated[list[str], Field(min_length=1)]


class Undo(BaseModel):
    """The last change of a tab is taken back."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tab: Tab


class Nothing(BaseModel):
    """A request that says nothing more."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Page:
    """The requests of a session; `close` ends the server."""

    batch: Batch
    close: Callable[[], None]

    def state(self) -> dict[str, Any]:
        """Everything that a tab shows, from the labels on disk."""
        labels = self.batch.answers.current()
        return {
            "name": self.batch.name,
            "file": str(self.batch.answers.file),
            "notes": self.batch.notes,
            "queue": [
                {
                    "path": entry.path,
                    "why": entry.why,
                    "cluster": entry.cluster,
                    "guess": entry.guess,
                    "sure": entry.sure,
                    "label": as_json(labels.get(entry.path, Label())),
                }
                for entry in self.batch.queue
            ],
            **self.totals(labels),
        }

    def totals(self, labels: Mapping[str, Label]) -> dict[str, Any]:
        """The classes in the order of their keys, and the labels of each."""
        counts = Counter(label.name for label in labels.values() if label.name)
        return {"classes": [{"name": name, "labels": counts[name]} for name in self.batch.answers.classes]}

    def cluster(self, number: int) -> dict[str, Any]:
        """The pictures of a cluster that have no label, and are not unusable."""
        labels = self.batch.answers.current()
        paths = [path for path in self.batch.clusters[number] if labels.get(path, Label()) == Label()]
        return {"cluster": number, "paths": paths}

    def label(self, change: LabelChange) -> dict[str, Any]:
        """Label a suggested picture, or mark it as unusable."""
        how = {entry.path: entry.how for entry in self.batch.queue}[change.path]
        label = Label(how="unusable") if change.unusable else Label(name=self.class_of(change.name), how=how)
        expected = Label(name=change.expected.name, how=change.expected.how)
        self.batch.answers.change(change.tab, {change.path: label}, {change.path: expected})
        return self.changed({change.path: label})

    def label_cluster(self, change: ClusterChange) -> dict[str, Any]:
        """Label pictures of a cluster at once."""
        if set(change.paths) - set(self.batch.clusters[change.cluster]):
            raise KeyError(change.cluster)
        labels = dict.fromkeys(change.paths, Label(name=self.class_of(change.name), how="bulk"))
        self.batch.answers.change(change.tab, labels, {})
        return self.changed(labels)

    def class_of(self, text: str) -> str:
        """The class that was chosen by its key, as the labels spell it, or a new one that was typed."""
        return text if text in self.batch.answers.classes else class_name(text)

    def undo(self, change: Undo) -> dict[str, Any]:
        """Take the last change of a tab back."""
        last = self.batch.answers.undo(change.tab)
        return self.changed({} if last is None else last.before)

    def changed(self, labels: Mapping[str, Label]) -> dict[str, Any]:
        """The answer to a change: the labels of its pictures as they are on disk."""
        totals = self.totals(self.batch.answers.current())
        return {"labels": {path: as_json(label) for path, label in labels.items()}, **totals}

    def end(self, _: Nothing) -> dict[str, Any]:
        """End the server once this is answered."""
        self.close()
        return {}


def as_json(label: Label) -> dict[str, str]:
    """A label as the page has it."""
    return {"name": label.name, "how": label.how}


def application(page: Page) -> Starlette:
    """The ASGI application, without the checks of guard.py."""

    async def state(request: Request) -> Response:
        return JSONResponse(await _answered(page.state))

    async def cluster(request: Request) -> Response:
        return JSONResponse(await _answered(lambda: page.cluster(int(request.query_params["number"]))))

    async def picture(request: Request) -> Response:
        name, is_small = request.query_params.get("path", ""), "small" in request.query_params
        return Response(await _answered(lambda: _jpeg(page.batch, name, is_small)), media_type="image/jpeg")

    return Starlette(
        routes=[
            *(Route(path, _file(*file), methods=["GET"]) for path, file in FILES.items()),
            Route("/state", state, methods=["GET"]),
            Route("/cluster", cluster, methods=["GET"]),
            Route("/picture", picture, methods=["GET"]),
            Route("/label", _change(page.label, LabelChange), methods=["POST"]),
            Route("/label-cluster", _change(page.label_cluster, ClusterChange), methods=["POST"]),
            Route("/undo", _change(page.undo, Undo), methods=["POST"]),
            Route("/close", _change(page.end, Nothing), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _error},
    )


def _jpeg(batch: Batch, name: str, is_small: bool) -> bytes:
    try:
        return batch.jpeg(name, is_small)
    except (KeyError, OutsideError):
        raise
    except Exception as error:  # Pillow's readers raise errors of many types on broken bytes
        raise HTTPException(422, reason(error)) from None


def _file(name: str, media_type: str) -> Endpoint:
    async def file(request: Request) -> Response:
        return FileResponse(HERE / name, media_type=media_type)

    return file


def _change(act: Callable[[B], dict[str, Any]], kind: type[B]) -> Endpoint:
    async def change(request: Request) -> Response:
        body = await _body(request, kind)
        return JSONResponse(await _answered(lambda: act(body)))

    return change


async def _body(request: Request, kind: type[B]) -> B:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the body must be JSON")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MAX_BODY:
            raise HTTPException(413, "the body is too large")
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        raise HTTPException(400, f"the body is wrong: {error.errors(include_url=False)[0]['msg']}") from None


async def _answered(work: Callable[[], T]) -> T:
    """Do blocking work in a thread; its errors become statuses.

    Raises:
        HTTPException: 400 a wrong name, 403 a picture outside the data, 404 an unknown one, 409 another label than the
            tab shows, 507 a file that cannot be written.
    """
    try:
        return await run_in_threadpool(work)
    except ConflictError as error:
        raise HTTPException(409, str(error)) from None
    except InputError as error:
        raise HTTPException(400, str(error)) from None
    except OutsideError as error:
        raise HTTPException(403, str(error)) from None
    except (LookupError, ValueError):
        raise HTTPException(404, "there is no such picture or cluster") from None
    except OSError as error:
        raise HTTPException(507, f"nothing was changed: {error}") from None


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)
