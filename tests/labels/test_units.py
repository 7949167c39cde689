"""Units hold what must not be divided: groups, and pictures with the same pixels."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.errors import InputError
from edgedistill.labels import units


def test_groups_and_equal_pixels_join() -> None:
    hashes = np.array([b"a", b"b", b"a", b"c", b"d", b"c"])
    np.testing.assert_array_equal(units.unit_ids(hashes, None), [0, 1, 0, 2, 3, 2])
    groups = [None, "left", "left", None, "right", None]
    # 0 and 2 have the same pixels, 2 and 1 are of one group
    np.testing.assert_array_equal(units.unit_ids(hashes, groups), [0, 0, 0, 1, 2, 1])
    assert len(units.unit_ids(np.array([], dtype="S1"), [])) == 0


def test_images_without_a_group_are_alone() -> None:
    np.testing.assert_array_equal(units.unit_ids(np.array([b"a", b"b", b"c"]), [None, None, "x"]), [0, 1, 2])


def test_pattern_names_groups() -> None:
    names = ["ward/p01_0.png", "ward/p01_1.png", "ward/p02_0.png", "ward/readme.png"]
    assert units.groups_by_pattern(names, r"/(p\d+)_") == ["p01", "p01", "p02", None]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is no regular expression"), (r"p\d+", "has no group"), ("(x+)", "matches no image")],
)
def test_useless_patterns_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"data\.group: .*{message}"):
        units.groups_by_pattern(["p01.png"], pattern)


def test_one_picture_with_two_labels_is_contradicted() -> None:
    hashes = np.array([b"a", b"a", b"b", b"b", b"c", b"c"])
    labels_N = np.array([0, 1, 0, 0, 1, -1])
    np.testing.assert_array_equal(units.contradicted(hashes, labels_N), [True, True, False, False, False, False])


def test_names_of_frames_are_recognized() -> None:
    frames = [f"{label}/cam{camera}_{frame:06d}.png" for label in "ab" for camera in "12" for frame in range(20)]
    assert units.recordings(frames) == 4
    assert units.recordings([f"{index:05d}.png" for index in range(100)]) is None, "numbers alone tell nothing"
    assert units.recordings([f"a/{index:05d}.png" for index in range(100)]) is None
    assert units.recordings([f"photo-{index % 7}.png" for index in range(100)]) is None
    assert units.recordings([f"IMG_{index:04d}.png" for index in range(100)]) is None, "one camera roll"
