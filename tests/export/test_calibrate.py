"""Ranges: what is seen of a tensor on real graphs, and the rules against arrays made by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgedistill.errors import EdgeDistillError
from edgedistill.export import calibrate, infer
from edgedistill.export.calibrate import METHODS, Seen
from tests.helpers.export_nets import Exported

NAMES = ["relu", "getitem", "permute", "logits"]


def seen(*values: float) -> Seen:
    array = np.array(values, np.float32)
    return Seen(low=float(array.min()), high=float(array.max()), values=array)


def of(array: np.ndarray) -> Seen:
    return Seen(low=float(array.min()), high=float(array.max()), values=array.astype(np.float32))


def test_the_extremes_are_of_every_value_and_the_sample_is_of_them(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    model = onnx.load(made.path)
    untouched = model.SerializeToString()
    found = calibrate.collect(model, made.images_NHWC, NAMES)
    assert model.SerializeToString() == untouched
    running = infer.session(calibrate._with_outputs(model, NAMES))
    arrays_ = [running.run(NAMES, {"images": image[None]}) for image in made.images_NHWC]
    assert list(found) == NAMES
    for at, name in enumerate(NAMES):
        whole = np.stack([one[at][0] for one in arrays_])
        np.testing.assert_allclose(
            (found[name].low, found[name].high), (whole.min(), whole.max()), rtol=1e-4, atol=1e-5
        )
        values = found[name].values
        assert values.dtype == np.float32
        assert len(made.images_NHWC) <= len(values) <= len(made.images_NHWC) * calibrate.PER_IMAGE
        # single images and batches of four sum in another order
        ordered = np.sort(whole.reshape(-1))
        place = np.searchsorted(ordered, values).clip(1, len(ordered) - 1)
        assert np.minimum(np.abs(ordered[place] - values), np.abs(ordered[place - 1] - values)).max() < 1e-4


def test_small_tensors_are_kept_whole(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    (logits,) = calibrate.collect(onnx.load(made.path), made.images_NHWC[:6], ["logits"]).values()
    wanted = infer.predict_onnx(made.path, made.images_NHWC[:6])
    np.testing.assert_allclose(logits.values, wanted.reshape(-1), rtol=1e-4, atol=1e-5)


def test_another_column_is_sampled_of_every_batch() -> None:
    # 2 images of 5000 values: every third, from place 0 in the first batch and 7919 % 3 = 2 in the second
    array = np.tile(np.arange(5000, dtype=np.float32), (2, 1))
    np.testing.assert_array_equal(calibrate._sample(array, 0), np.tile(np.arange(0, 5000, 3), 2))
    np.testing.assert_array_equal(calibrate._sample(array, 1), np.tile(np.arange(2, 5000, 3), 2))


def test_extremes_do_not_depend_on_how_images_are_batched(
    exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported("resnet")
    model, images = onnx.load(made.path), made.images_NHWC[:7]
    whole = calibrate.ranges(calibrate.collect(model, images, NAMES), "minmax")
    assert list(whole) == sorted(NAMES)
    for batch in (1, 3):
        monkeypatch.setattr(calibrate, "BATCH", batch)
        again = calibrate.ranges(calibrate.collect(model, images, NAMES), "minmax")
        for name, wanted in whole.items():
            np.testing.assert_allclose(again[name], wanted, rtol=1e-4, atol=1e-5)


def test_a_diverged_student_is_named(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    model = onnx.load(made.path)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.inf, np.float32), weight.name))
    with pytest.raises(EdgeDistillError, match=r"quantize: tensor getitem ranges from .*: train it again"):
        calibrate.collect(model, made.images_NHWC[:2], ["getitem"])


def test_an_image_is_named_by_its_pixels() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert calibrate.image_hash(image) == hashlib.sha256(bytes(range(18))).hexdigest()
    turned = calibrate.image_hash(image[::-1])
    assert turned == hashlib.sha256(bytes([*range(9, 18), *range(9)])).hexdigest()


def test_minmax_is_everything_that_was_seen_not_only_the_sample() -> None:
    assert calibrate.minmax(Seen(low=-3.0, high=7.0, values=np.array([0.5], np.float32))) == (-3.0, 7.0)


def test_percentile_leaves_out_the_outermost_ten_thousandth() -> None:
    # 0, 1, ... 10000: half of 0.01 % from either end is half a value
    low, high = calibrate.percentile(of(np.arange(10_001, dtype=np.float64)))
    assert (low, high) == (pytest.approx(0.5), pytest.approx(9999.5))


def small_and_one_large(large: float, sign: int = 1) -> Seen:
    """100 000 values of a normal distribution and one far outside."""
    values = np.random.default_rng(0).normal(size=100_000)
    return of(np.append(values, sign * large))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_a_single_outlier_among_small_values_is_cut(method: str, sign: int) -> None:
    one = small_and_one_large(40.0, sign)
    low, high = METHODS[method](one)
    assert max(-low, high) < 30
    # and what is not cut are the values themselves: two thousandths of them lie beyond three
    assert min(-low, high) > 2.5
    assert calibrate.minmax(one) == (one.low, one.high)


def test_mse_by_hand() -> None:
    """Of two values, 0.004 and 1, the whole range loses least: any smaller share cuts the 1 by more than a step."""
    assert calibrate.mse(seen(0.004, 1.0)) == (0.0, 1.0)
    # 10 000 values of 0.3 steps of the whole range, and one of all of it: at full range each is off by 0.3 steps,
    # which is 10000 * (0.3 / 255)^2 = 0.0138; at a fifth they are off by at most 0.1 of a step a fifth as large,
    # but the one is off by 0.8: 0.64 in all
    many = of(np.append(np.full(10_000, 0.3 / 255), 1.0))
    assert calibrate.mse(many)[1] > 0.8
    # 30 000 that are half a step off cost 0.115; at a share of 0.7 they are 0.2 / 255 off, which is 0.018, and the one
    # is 0.3 off, which is 0.09
    assert calibrate.mse(of(np.append(np.full(30_000, 0.5 / 255), 1.0)))[1] < 0.95


def test_mse_cuts_each_side_where_eight_bits_want_it() -> None:
    # of a standard normal, 256 levels are best spent within about four deviations; one outlier changes little
    low, high = calibrate.mse(small_and_one_large(40.0))
    assert -4.5 < low < -3.2
    assert 3.2 < high < 4.5


def test_zeros_do_not_matter_for_entropy() -> None:
    values = np.abs(np.random.default_rng(1).normal(size=20_000))
    assert calibrate.entropy(of(np.append(values, np.zeros(40_000)))) == pytest.approx(
        (0.0, calibrate.entropy(of(values))[1])
    )


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    low, high = calibrate.entropy(of(np.linspace(-1, 1, 40_001)))
    assert (low, high) == (-1.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_never_negative_starts_at_its_lowest_or_zero(method: str) -> None:
    values = np.maximum(np.random.default_rng(2).normal(size=20_000), 0)
    low, high = METHODS[method](of(values))
    assert low == 0.0
    assert 1.0 < high <= values.max() + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_a_range_of_nothing(method: str) -> None:
    assert METHODS[method](seen(0.0, 0.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32)))
def test_no_rule_goes_beyond_what_was_seen_and_zero(method: str, values: np.ndarray) -> None:
    low, high = METHODS[method](of(values))
    assert np.isfinite([low, high]).all()
    assert min(0.0, float(values.min())) - 1e-4 <= low <= high <= max(0.0, float(values.max())) + 1e-4
