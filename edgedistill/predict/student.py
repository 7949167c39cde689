"""An exported student: label and probabilities of pictures by the bundle's graph, or "unknown"; torch is not loaded.

H and W pixels, C classes, B images of a batch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgedistill.agent import backends, pictures, unsure
from edgedistill.agent.job import AgentError
from edgedistill.data import images
from edgedistill.devices import bundle as bundles
from edgedistill.errors import InputError
from edgedistill.predict.listing import listed
from edgedistill.run import artifacts
from edgedistill.run.directory import Run, find_run
from edgedistill.run.files import read_json

Picture = str | Path | Image.Image | np.ndarray
BATCH = 32
AHEAD = 4  # batches that are decoded before they are needed


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a student answers for one picture.

    Attributes:
        path: the picture's file; None for a picture in memory.
        label: the most probable class.
        probability: its probability in [0, 1].
        unknown: the probability is too low to be an answer.
        classes: the student's classes.
        probabilities_C: the probability of each class, float64 [C].
    """

    path: Path | None
    label: str
    probability: float
    unknown: bool = False
    classes: tuple[str, ...] = field(default=(), repr=False)
    probabilities_C: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each class by its name, the most probable first.

        Of classes that share a name it is that of the most probable one; `probabilities_C` has all.
        """
        by_name: dict[str, float] = {}
        for name, probability in self.top(len(self.classes)):
            by_name.setdefault(name, probability)
        return by_name

    def top(self, n: int) -> list[tuple[str, float]]:
        """The `n` most probable classes with their probabilities, the most probable first."""
        order = np.argsort(-self.probabilities_C, kind="stable")[:n]
        return [(self.classes[index], float(self.probabilities_C[index])) for index in order]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A picture that cannot be read, and why, in one line."""

    path: Path | None
    reason: str

    def __str__(self) -> str:
        return f"{self.path or 'picture in memory'}: not a picture that can be read ({self.reason})"


class Student:
    """The default graph of a bundle, the one chosen for a CPU.

    Attributes:
        folder: the bundle.
        classes: names of the classes, in the order of the outputs.
        input_px: side of the input in pixels; or height and width, of a model that somebody else trained.
        view: how a picture becomes the input.
    """

    def __init__(self, folder: Path) -> None:
        """Check and load a bundle.

        Raises:
            InputError: there is no bundle, it was altered, or its default graph is not for a CPU.
        """
        bundles.verify_bundle(folder)
        bundle = read_json(folder / "bundle.json", artifacts.EXPORT)
        self.folder = folder
        self.classes: tuple[str, ...] = tuple(bundle["classes"])
        self.input_px = _size(bundle["input_px"])
        self._graph: Mapping[str, Any] = next(model for model in bundle["models"] if model["name"] == bundle["default"])
        self.view = images.View(px=_size(bundle["store_px"]), fit=bundle["fit"], limits=bundle.get("range"))
        self._backend = backends.create("onnxruntime-cpu")
        try:
            self._backend.build(folder / self._graph["file"], threads=1)
        except AgentError as error:
            raise InputError(f"{folder}: {error}", artifacts.EXPORT) from None

    def __repr__(self) -> str:
        return f"Student({str(self.folder)!r}, {len(self.classes)} classes, {images.size_text(self.input_px)})"

    def predict(self, source: Picture | Iterable[Picture], *, batch: int = BATCH) -> list[Prediction]:
        """Label pictures.

        Args:
            source: a picture or several: paths, folders, patterns such as `photos/*.jpg`, Pillow's images, or arrays
                of uint8 [H, W], [H, W, 3] or [H, W, 4]; an array [B, H, W, 3] is B pictures.
            batch: pictures that go through the graph at once.

        Raises:
            InputError: there is no picture, one cannot be read, or `batch` is less than 1.
        """
        predictions = []
        for answer in self.stream(source, batch=batch):
            if isinstance(answer, Unreadable):
                raise InputError(str(answer))
            predictions.append(answer)
        return predictions

    def stream(self, source: Picture | Iterable[Picture], *, batch: int = BATCH) -> Iterator[Prediction | Unreadable]:
        """Label pictures one after the other, in their order; those that cannot be read are said and passed over.

        They are decoded ahead on all cores; memory is that of a few batches, however many pictures there are.

        Args:
            source: as of `predict`; several may be a generator, of which a few batches are taken ahead.
            batch: pictures that go through the graph at once.

        Raises:
            InputError: a folder or a pattern has no pictures, or `batch` is less than 1.
        """
        if batch < 1:
            raise InputError(f"batch: {batch} pictures go through no graph", "1 is the least")
        pending: deque[tuple[Path | None, Future[np.ndarray | str]]] = deque()
        remaining = _pictures(source)
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            while True:
                for picture in islice(remaining, AHEAD * batch - len(pending)):
                    place = Path(picture) if isinstance(picture, str | Path) else None
                    pending.append((place, pool.submit(self._square, picture)))
                if not pending:
                    return
                ready = [pending.popleft() for _ in range(min(batch, len(pending)))]
                yield from self._answers([(place, future.result()) for place, future in ready])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _square(self, picture: Picture) -> np.ndarray | str:
        """The picture at the student's input size, uint8 [H, W, 3], or why it cannot be read."""
        view = self.view
        try:
            if isinstance(picture, str | Path):
                return images.read(Path(picture), view, self.input_px)
            image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            rgb = pictures.to_rgb(image, view.limits)
            return pictures.fit_square(rgb, view.px, input_px=self.input_px, fit=view.fit)
        except MemoryError:
            raise
        except pictures.UnreadableError as error:
            return str(error)
        except Exception as error:  # Pillow's readers raise errors of many types on broken bytes
            return pictures.reason(error)

    def _answers(self, squares: Sequence[tuple[Path | None, np.ndarray | str]]) -> Iterator[Prediction | Unreadable]:
        readable = [square for _, square in squares if not isinstance(square, str)]
        logits_BC = iter(self._backend.infer(np.stack(readable)) if readable else ())
        for place, square in squares:
            yield (
                Unreadable(path=place, reason=square)
                if isinstance(square, str)
                else self._label(place, next(logits_BC))
            )

    def _label(self, path: Path | None, logits_C: np.ndarray) -> Prediction:
        decision = unsure.answer(logits_C, self._graph)
        return Prediction(
            path=path,
            label=self.classes[decision.best],
            probability=decision.probability,
            unknown=decision.unknown,
            classes=self.classes,
            probabilities_C=unsure.probabilities(logits_C, self._graph),
        )


def _size(stated: int | list[int]) -> int | tuple[int, int]:
    """The size that a bundle states, which may be a list of height and width."""
    return stated if isinstance(stated, int) else (stated[0], stated[1])


def load(path: str | Path = "runs/latest") -> Student:
    """Load the student of a run directory or of a bundle's folder.

    Raises:
        InputError: it is neither, the bundle was altered, or it is of a student that the run trained before its
            present one.
    """
    folder = Path(path)
    return Student(folder) if (folder / bundles.SUMS).is_file() else of_run(find_run(folder))


def of_run(run: Run) -> Student:
    """Load the student of a run.

    Raises:
        InputError: the run has no bundle, the bundle was altered, or it is of a student that the run trained before its
            present one.
    """
    if artifacts.is_outdated(run):
        raise InputError(f"{run.path}: the graphs are of an earlier student", artifacts.EXPORT)
    return Student(run / "bundle")


def _pictures(source: Picture | Iterable[Picture]) -> Iterator[Picture]:
    """One picture or several as files and images; folders and patterns become their files. A Path is no pattern."""
    if isinstance(source, np.ndarray) and source.ndim == 4:
        yield from source
        return
    several = [source] if isinstance(source, str | Path | Image.Image | np.ndarray) else source
    for picture in several:
        if isinstance(picture, str) or (isinstance(picture, Path) and picture.is_dir()):
            yield from listed([str(picture)])
        else:
            yield picture
