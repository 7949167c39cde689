"""Units hold what must not be divided: groups, and pictures with the same pixels."""

from __future__ import annotations

from itertools import chain

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


def test_empty_group_is_none() -> None:
    assert units.groups_by_pattern(["p1x.png", "px.png", "px2.png", "q.png"], r"p(\d*)x") == ["1", None, None, None]
    with pytest.raises(InputError, match="matches no image"):
        units.groups_by_pattern(["px.png"], r"p(\d*)x")


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


def recorded(names_by_class: dict[str, list[str]]) -> int | None:
    names = [name for several in names_by_class.values() for name in several]
    return units.recordings(names, np.repeat(np.arange(len(names_by_class)), [len(n) for n in names_by_class.values()]))


def test_recordings_that_are_the_classes_are_none() -> None:
    for prefix in ("IMG_", "dsc", "{}_", "{}-session-", "cam1_"):
        names = {label: [f"{label}/{prefix.format(label)}{1037 + row}.png" for row in range(20)] for label in "abc"}
        assert recorded(names) is None, prefix
        assert units.recordings(list(chain(*names.values()))) == 3, "without labels a folder is a recording"
    two = {
        "a": [f"a/IMG_{row:04d}.png" for row in range(20)],
        "b": [f"b/{p}_{row:04d}.png" for p in ("IMG", "DSC") for row in range(20)],
    }
    assert recorded(two) is None
    frames = {
        label: [f"{label}/{cam}_{row:04d}.png" for cam in ("left", "right") for row in range(20)] for label in "ab"
    }
    assert recorded(frames) == 4
    films = {
        label: [f"film{(row + shift) % 4}/image_{row:04d}.png" for row in range(20)] for shift, label in enumerate("ab")
    }
    assert recorded(films) == 4, "one folder has both classes"


def test_recording_in_several_classes_is_recognized() -> None:
    classes = np.arange(300) // 10 % 3  # ten frames of a class, then of the next one
    shuffled = np.random.default_rng(0).permutation(classes)

    def folders(prefix: str, labels: np.ndarray, folder: str = "{}/") -> dict[str, list[str]]:
        return {
            label: [f"{folder.format(label)}{prefix}{row:06d}.png" for row in np.flatnonzero(labels == index)]
            for index, label in enumerate("abc")
        }

    for folder in ("{}/", ""):
        assert recorded(folders("cam1_", classes, folder)) == 1
        assert recorded(folders("cam1_", shuffled, folder)) == 1
        assert recorded(folders("belt_", classes, folder)) == 1
        assert recorded(folders("belt_", shuffled, folder)) is None, "a catalog: neighbors have nothing in common"
        assert recorded(folders("belt_", np.sort(classes), folder)) is None, "numbered class by class"
        assert recorded(folders("IMG_", classes, folder)) is None, "one camera roll"
