"""From a picture to its label, as `label.py` goes: decoding and resizing can take longer than the model.

Two starts are timed: a JPEG file, which lies in the system's cache, and a frame in memory, as a camera gives it. The
pictures are the first test images, enlarged to the job's size, with grain: a photo's detail is what decoding costs.
N images, H x W pixels. Pillow is needed; without it nothing of this is measured.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from . import meter
from .job import Pictures

STARTS = ("file", "frame")
IMAGES = 8
GRAIN = 6.0  # standard deviation in levels of 255
QUALITY = 90


class Made(NamedTuple):
    """The pictures of a job, as files and as frames, uint8 [H, W, 3]."""

    settings: Pictures
    input_px: Tuple[int, int]  # height and width
    files: List[Path]
    frames: List[np.ndarray]


def variant(model: str, start: str) -> str:
    """What a model timed from a start is called beside its own variant."""
    return f"{model}, {start} to label"


def missing() -> Optional[str]:
    """Why nothing can be timed to the label on this machine; None if it can be."""
    try:
        from . import pictures  # noqa: F401
    except ImportError as error:
        return f"not timed to the label: {error}; {sys.executable} -m pip install pillow"
    return None


@contextlib.contextmanager
def made(settings: Optional[Pictures], images_NHWC: np.ndarray) -> Iterator[Optional[Made]]:
    """Make the pictures for the block; None if the job asks for none, or Pillow is missing.

    Args:
        settings: the size of the pictures, and how they become the model's input.
        images_NHWC: the test images, uint8 [N, H, W, 3].
    """
    if settings is None or missing():
        yield None
        return
    from PIL import Image

    from . import pictures

    generator, size = np.random.default_rng(0), (settings.width, settings.height)
    frames = []
    for image_HWC in images_NHWC[:IMAGES]:
        enlarged_HWC = np.asarray(Image.fromarray(image_HWC).resize(size, pictures.BILINEAR), dtype=np.float32)
        grain_HWC = generator.normal(0.0, GRAIN, enlarged_HWC.shape).astype(np.float32)
        frames.append(np.clip(enlarged_HWC + grain_HWC, 0, 255).astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.jpg" for index in range(len(frames))]
        for path, frame_HWC in zip(files, frames):
            Image.fromarray(frame_HWC).save(path, quality=QUALITY)
        yield Made(settings, images_NHWC.shape[1:3], files, frames)


def queries(pictures_made: Made, infer: Callable[[np.ndarray], np.ndarray]) -> Dict[str, meter.Query]:
    """A query from each start to the label; `infer` takes uint8 [1, H, W, 3] and returns logits [1, C]."""
    from PIL import Image

    from . import pictures

    (_, _, store_px, fit), input_px = pictures_made.settings, pictures_made.input_px

    def label(picture_HWC: np.ndarray) -> int:
        return int(infer(picture_HWC[np.newaxis])[0].argmax())

    def from_file(path: Path) -> int:
        return label(pictures.read(path, store_px=store_px, input_px=input_px, fit=fit, limits=None))

    def from_frame(frame_HWC: np.ndarray) -> int:
        return label(pictures.fit_square(Image.fromarray(frame_HWC), store_px, input_px=input_px, fit=fit))

    return {"file": meter.timed(from_file, pictures_made.files), "frame": meter.timed(from_frame, pictures_made.frames)}


def windows(pictures_made: Made) -> Dict[str, str]:
    """What the timed window of each start holds."""
    width, height = pictures_made.settings.width, pictures_made.settings.height
    size = sum(path.stat().st_size for path in pictures_made.files)
    bits = 8.0 * size / (len(pictures_made.files) * width * height)
    rest = "both resizings by Pillow, the model, its label"
    return {
        "file": f"a JPEG of {width} x {height} pixels ({bits:.1f} bits each) read and decoded, {rest}",
        "frame": f"a frame of {width} x {height} RGB pixels in memory, {rest}",
    }


def results(parts: Sequence[Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    """The latencies from each start over all processes: {start: {"samples_ms", "warmup_ms", "window"}}.

    Args:
        parts: one variant of every part that `worker.work` returned, from host to host.
    """
    starts: Tuple[str, ...] = tuple(parts[0].get("to_label") or ())
    timed = {start: [part["to_label"][start] for part in parts] for start in starts}
    return {
        start: {
            "samples_ms": [sample for part in of_parts for round_ in part["rounds_ms"] for sample in round_],
            "warmup_ms": [sample for part in of_parts for sample in part["warmup_ms"]],
            "window": of_parts[0]["window"],
        }
        for start, of_parts in timed.items()
    }
