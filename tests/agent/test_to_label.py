"""Timing to the label: the same pixels as label.py's, from files and frames of the size asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from edgedistill.agent import pictures, to_label
from edgedistill.agent.job import Pictures

SETTINGS = Pictures(width=70, height=50, store_px=24, fit="squash")


@pytest.fixture
def pictures_made() -> Iterator[to_label.Made]:
    images_NHWC = np.random.default_rng(0).integers(0, 255, size=(3, 16, 16, 3), dtype=np.uint8)
    with to_label.made(SETTINGS, images_NHWC) as made:
        assert made is not None
        yield made


def test_pictures_have_the_size_asked_for_and_are_gone_afterwards(pictures_made: to_label.Made) -> None:
    assert [frame.shape for frame in pictures_made.frames] == [(50, 70, 3)] * 3
    for path in pictures_made.files:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (70, 50))
    windows = to_label.windows(pictures_made)
    assert windows["file"].startswith("a JPEG of 70 x 50 pixels (") and "70 x 50 RGB pixels" in windows["frame"]
    with to_label.made(SETTINGS, np.zeros((1, 16, 16, 3), np.uint8)) as other:
        assert other is not None and other.files[0].exists()
    assert not other.files[0].exists()


def test_model_gets_the_pixels_that_label_py_reads(pictures_made: to_label.Made) -> None:
    asked: list[np.ndarray] = []

    def infer(images_BHWC: np.ndarray) -> np.ndarray:
        asked.append(images_BHWC)
        return np.array([[0.0, 1.0]])

    queries = to_label.queries(pictures_made, infer)
    assert set(queries) == set(to_label.STARTS)
    assert all(queries[start]() > 0 for start in ("file", "frame"))
    from_file = pictures.read(pictures_made.files[0], store_px=24, input_px=16, fit="squash", limits=None)
    from_frame = pictures.fit_square(Image.fromarray(pictures_made.frames[0]), 24, input_px=16, fit="squash")
    np.testing.assert_array_equal(asked[0], from_file[None])
    np.testing.assert_array_equal(asked[1], from_frame[None])


@pytest.mark.parametrize(("fit", "box"), [("crop", (9, 0, 61, 50)), ("squash", (0, 0, 70, 50))])
def test_input_may_be_no_square(fit: str, box: tuple[int, int, int, int]) -> None:
    """25 x 26 (height and width) of a picture of 50 x 70: the center of 50 x 52, or all of it."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, size=(50, 70, 3), dtype=np.uint8))
    expected = np.asarray(picture.resize((26, 25), pictures.BILINEAR, box=box))
    np.testing.assert_array_equal(pictures.fit_square(picture, [25, 26], input_px=(25, 26), fit=fit), expected)


def test_without_pillow_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_label.missing() is None
    monkeypatch.delitem(sys.modules, "edgedistill.agent.pictures")
    monkeypatch.delattr("edgedistill.agent.pictures")
    monkeypatch.setitem(sys.modules, "PIL", None)
    reason = to_label.missing()
    assert reason and reason.startswith("not timed to the label: ") and reason.endswith("-m pip install pillow")
    with to_label.made(SETTINGS, np.zeros((1, 16, 16, 3), np.uint8)) as made:
        assert made is None


def test_samples_of_all_processes_are_joined() -> None:
    file = {"rounds_ms": [[1.0, 2.0], [3.0]], "warmup_ms": [9.0], "window": "w"}
    parts = [{"to_label": {"file": file}}, {"to_label": {"file": {**file, "rounds_ms": [[4.0]]}}}]
    joined = {"samples_ms": [1.0, 2.0, 3.0, 4.0], "warmup_ms": [9.0, 9.0], "window": "w"}
    assert to_label.results(parts) == {"file": joined}
    assert to_label.results([{"to_label": {}}]) == to_label.results([{}]) == {}
