"""Near-copies are found after the usual changes; pictures that only look alike are not."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.labels import near_copies as module
from edgedistill.labels.near_copies import NearCopies, near_copies, sign_codes
from tests.helpers.textures import PX, brighter, compressed, pixel_hashes, resized, squares, textures


def compared(images_NHWC: np.ndarray, **options: list[np.ndarray]) -> NearCopies:
    return near_copies(images_NHWC, pixel_hashes(images_NHWC), **options)


def pairs(outcome: NearCopies) -> set[tuple[int, int]]:
    return {(int(first), int(second)) for first, second in outcome.pairs_P2}


def test_usual_changes_are_found_and_nothing_else() -> None:
    originals = squares(40 * textures(60, seed=0))
    copies = [
        compressed(originals[0]),
        resized(resized(originals[1], (0, 0, PX, PX), px=PX // 2), (0, 0, PX // 2, PX // 2)),
        resized(originals[2], (2, 1, PX, PX - 1)),
        brighter(originals[3]),
        brighter(compressed(resized(originals[4], (0, 2, PX - 2, PX)))),
    ]
    outcome = compared(np.stack([*originals, *copies]))
    assert pairs(outcome) == {(row, 60 + row) for row in range(5)}
    assert (outcome.scores_P >= module.MIN_SCORE).all() and (np.diff(outcome.scores_P) <= 0).all()
    np.testing.assert_array_equal(outcome.units_N[60:], outcome.units_N[:5])
    assert len(np.unique(outcome.units_N)) == 60


def test_exact_copies_are_in_units_but_are_no_pairs() -> None:
    originals = squares(40 * textures(5, seed=1))
    outcome = compared(originals[[0, 1, 0, 2, 3, 2, 4]])
    assert pairs(outcome) == set()
    np.testing.assert_array_equal(outcome.units_N, [0, 1, 0, 2, 3, 2, 4])
    near = compared(np.stack([originals[0], originals[0], compressed(originals[0]), originals[1]]))
    assert pairs(near) == {(0, 2)}
    np.testing.assert_array_equal(near.units_N, [0, 0, 0, 1])


def test_pictures_of_one_layout_are_no_copies() -> None:
    """One strong pattern with a little of their own: they correlate by 0.96, as cells of one kind of solar panel do."""
    layout, own = textures(1, seed=2), textures(80, seed=3)
    alike = squares(40 * layout + 6 * own)
    flattened = alike.reshape(80, -1).astype(float)
    assert np.corrcoef(flattened).min() > 0.95
    assert pairs(compared(alike)) == set()
    assert pairs(compared(np.stack([*alike, compressed(alike[7], quality=95)]))) == {(7, 80)}


def test_many_copies_of_one_picture_are_not_taken_for_a_layout() -> None:
    originals = squares(40 * textures(40, seed=4))
    burst = [compressed(originals[0], quality=quality) for quality in range(40, 90, 5)]
    outcome = compared(np.stack([*originals, *burst]))
    assert set(np.flatnonzero(outcome.units_N == outcome.units_N[0])) == {0, *range(40, 50)}


def test_flat_pictures_are_no_copies() -> None:
    """Blank pictures of one camera share the dust on its sensor and nothing else."""
    dust, noise = textures(1, seed=5), np.random.default_rng(5).standard_normal((6, PX, PX, 3))
    flat = squares(np.linspace(-90, 90, 6)[:, None, None, None] + 2 * dust + 0.1 * noise)
    assert pairs(compared(np.concatenate([flat, squares(40 * textures(20, seed=6))]))) == set()
    assert pairs(compared(flat)) == set()


def test_other_colors_are_another_picture() -> None:
    gray = textures(20, seed=7).mean(axis=3, keepdims=True)
    originals = squares(40 * np.repeat(gray, 3, axis=3))
    # the same brightness: red up, green down
    colored = squares(40 * gray[:1] + np.array([36.0, -18.3, 0.0]))
    assert pairs(compared(np.concatenate([originals, colored]))) == set()


def test_a_lonely_picture_and_two_copies_are_compared() -> None:
    picture = squares(40 * textures(1, seed=8))
    assert len(compared(picture).pairs_P2) == 0
    assert pairs(compared(np.stack([picture[0], compressed(picture[0])]))) == {(0, 1)}


def test_pairs_that_are_too_many_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = squares(40 * textures(30, seed=9))
    images = np.stack(
        [*originals, *(compressed(original, quality=40) for original in originals[:3]), originals[4] // 2]
    )
    monkeypatch.setattr(module, "MAX_ALIGNED", 2)
    outcome = compared(images)
    assert outcome.skipped == 2
    assert len(outcome.pairs_P2) <= 2


def test_crowded_hashes_keep_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = squares(40 * textures(30, seed=9))
    copies = [compressed(originals[0], quality=quality) for quality in (40, 60, 80)]
    monkeypatch.setattr(module, "MAX_PER_PICTURE", 1)
    # each picture keeps one later one: still all of them are one unit
    outcome = compared(np.stack([*originals, *copies]))
    assert len(set(outcome.units_N[[0, 30, 31, 32]])) == 1


def test_codes_of_features_find_what_the_hash_misses() -> None:
    originals = squares(40 * textures(40, seed=10))
    margin = 5
    images = np.stack([*originals, *(resized(square, (margin, 0, PX, PX - margin)) for square in originals[:20])])
    alone = pairs(compared(images))
    # features that hardly change, as those of a net
    features = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    features = np.concatenate([features, features[:20] + 0.01])
    together = pairs(compared(images, codes=[sign_codes([features[:40], features[40:]])]))
    assert alone < together <= {(row, 40 + row) for row in range(20)}
    # codes decide nothing: equal ones of different pictures join none
    assert pairs(compared(originals, codes=[np.zeros(40, dtype=np.uint64)])) == set()


def test_codes_differ_by_the_angle() -> None:
    generator = np.random.default_rng(1)
    features = generator.standard_normal((400, 64))
    turned = features * np.cos(np.pi / 8) + generator.standard_normal((400, 64)) * np.sin(np.pi / 8)
    codes = sign_codes([features, turned])
    bits = np.bitwise_count(codes[:400] ^ codes[400:]).astype(float)
    assert bits.mean() == pytest.approx(64 / 8, abs=0.5)
