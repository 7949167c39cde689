"""Calibration: tensor samples collected on real graphs, and the range rules on handmade arrays."""

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
from edgedistill.export.calibrate import METHODS, TensorStatistics
from tests.helpers.export_nets import Exported

NAMES = ["relu", "getitem", "permute", "logits"]


def sample_of(*values: float) -> TensorStatistics:
    array = np.array(values, np.float32)
    return TensorStatistics(low=float(array.min()), high=float(array.max()), values=array)


def sample_of_array(array: np.ndarray) -> TensorStatistics:
    return TensorStatistics(low=float(array.min()), high=float(array.max()), values=array.astype(np.float32))


def test_extremes_cover_every_value_and_samples_are_real_values(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    model = onnx.load(student.path)
    untouched = model.SerializeToString()
    samples = calibrate.collect(model, student.images_NHWC, NAMES)
    assert model.SerializeToString() == untouched
    running = infer.session(calibrate.with_outputs(model, NAMES))
    outputs = [running.run(NAMES, {"images": image[None]}) for image in student.images_NHWC]
    assert list(samples) == NAMES
    for index, name in enumerate(NAMES):
        tensor = np.stack([output[index][0] for output in outputs])
        np.testing.assert_allclose(
            (samples[name].low, samples[name].high), (tensor.min(), tensor.max()), rtol=1e-4, atol=1e-5
        )
        values = samples[name].values
        assert values.dtype == np.float32
        assert len(student.images_NHWC) <= len(values) <= len(student.images_NHWC) * calibrate.VALUES_PER_IMAGE
        # sums of single images and of batches of four differ in order
        ordered = np.sort(tensor.reshape(-1))
        position = np.searchsorted(ordered, values).clip(1, len(ordered) - 1)
        assert np.minimum(np.abs(ordered[position] - values), np.abs(ordered[position - 1] - values)).max() < 1e-4


def test_small_tensors_are_kept_whole(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    (logits,) = calibrate.collect(onnx.load(student.path), student.images_NHWC[:6], ["logits"]).values()
    expected = infer.predict_onnx(student.path, student.images_NHWC[:6])
    np.testing.assert_allclose(logits.values, expected.reshape(-1), rtol=1e-4, atol=1e-5)


def test_every_batch_is_sampled_at_another_offset() -> None:
    # 2 images of 5000 values: every third, from offset 0 in the first batch and 7919 % 3 = 2 in the second
    array = np.tile(np.arange(5000, dtype=np.float32), (2, 1))
    np.testing.assert_array_equal(calibrate.sample(array, 0), np.tile(np.arange(0, 5000, 3), 2))
    np.testing.assert_array_equal(calibrate.sample(array, 1), np.tile(np.arange(2, 5000, 3), 2))


def test_extremes_do_not_depend_on_how_images_are_batched(
    exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = exported("resnet")
    model, images = onnx.load(student.path), student.images_NHWC[:7]
    ranges = calibrate.ranges(calibrate.collect(model, images, NAMES), "minmax")
    assert list(ranges) == sorted(NAMES)
    for batch in (1, 3):
        monkeypatch.setattr(calibrate, "BATCH", batch)
        again = calibrate.ranges(calibrate.collect(model, images, NAMES), "minmax")
        for name, expected in ranges.items():
            np.testing.assert_allclose(again[name], expected, rtol=1e-4, atol=1e-5)


def test_diverged_student_is_refused_with_tensor_name(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    model = onnx.load(student.path)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.inf, np.float32), weight.name))
    with pytest.raises(EdgeDistillError, match=r"quantize: tensor getitem ranges from .*: train it again"):
        calibrate.collect(model, student.images_NHWC[:2], ["getitem"])


def test_image_hash_is_sha256_of_pixels() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert calibrate.image_hash(image) == hashlib.sha256(bytes(range(18))).hexdigest()
    turned = calibrate.image_hash(image[::-1])
    assert turned == hashlib.sha256(bytes([*range(9, 18), *range(9)])).hexdigest()


def test_minmax_covers_all_values_not_only_sample() -> None:
    assert calibrate.minmax(TensorStatistics(low=-3.0, high=7.0, values=np.array([0.5], np.float32))) == (-3.0, 7.0)


def test_percentile_leaves_out_the_outermost_ten_thousandth() -> None:
    # 0, 1, ... 10000: half of 0.01 % from either end is half a value
    low, high = calibrate.percentile(sample_of_array(np.arange(10_001, dtype=np.float64)))
    assert (low, high) == (pytest.approx(0.5), pytest.approx(9999.5))


def small_and_one_large(large: float, sign: int = 1) -> TensorStatistics:
    """Return samples of 100 000 normally distributed values and one outlier."""
    values = np.random.default_rng(0).normal(size=100_000)
    return sample_of_array(np.append(values, sign * large))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_single_outlier_among_small_values_is_cut(method: str, sign: int) -> None:
    sample = small_and_one_large(40.0, sign)
    low, high = METHODS[method](sample)
    assert max(-low, high) < 30
    # the values themselves are not cut: two thousandths of them lie beyond three
    assert min(-low, high) > 2.5
    assert calibrate.minmax(sample) == (sample.low, sample.high)


def test_mse_matches_hand_calculation() -> None:
    """Of the values 0.004 and 1, the full range loses least: any smaller share cuts the 1 by more than a step."""
    assert calibrate.mse(sample_of(0.004, 1.0)) == (0.0, 1.0)
    # 10 000 values of 0.3 steps and one at the end of the range: at full range each is off by 0.3 steps,
    # which is 10000 * (0.3 / 255)^2 = 0.0138; at a fifth of the range they are off by at most 0.1 of a step
    # a fifth as large, but the last value is off by 0.8: 0.64 in all
    many = sample_of_array(np.append(np.full(10_000, 0.3 / 255), 1.0))
    assert calibrate.mse(many)[1] > 0.8
    # 30 000 values that are half a step off cost 0.115; at a share of 0.7 they are 0.2 / 255 off, which is 0.018,
    # and the last value is 0.3 off, which is 0.09
    assert calibrate.mse(sample_of_array(np.append(np.full(30_000, 0.5 / 255), 1.0)))[1] < 0.95


def test_mse_cuts_normal_distribution_at_four_deviations() -> None:
    # for a standard normal, 256 levels are best spent within about four deviations; one outlier changes little
    low, high = calibrate.mse(small_and_one_large(40.0))
    assert -4.5 < low < -3.2
    assert 3.2 < high < 4.5


def test_entropy_ignores_zeros() -> None:
    values = np.abs(np.random.default_rng(1).normal(size=20_000))
    assert calibrate.entropy(sample_of_array(np.append(values, np.zeros(40_000)))) == pytest.approx(
        (0.0, calibrate.entropy(sample_of_array(values))[1])
    )


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    low, high = calibrate.entropy(sample_of_array(np.linspace(-1, 1, 40_001)))
    assert (low, high) == (-1.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_range_of_non_negative_values_starts_at_zero(method: str) -> None:
    values = np.maximum(np.random.default_rng(2).normal(size=20_000), 0)
    low, high = METHODS[method](sample_of_array(values))
    assert low == 0.0
    assert 1.0 < high <= values.max() + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_tensor_has_empty_range(method: str) -> None:
    assert METHODS[method](sample_of(0.0, 0.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32)))
def test_ranges_never_exceed_observed_extremes_and_zero(method: str, values: np.ndarray) -> None:
    low, high = METHODS[method](sample_of_array(values))
    assert np.isfinite([low, high]).all()
    assert min(0.0, float(values.min())) - 1e-4 <= low <= high <= max(0.0, float(values.max())) + 1e-4


@pytest.mark.parametrize("rule", sorted(METHODS))
@pytest.mark.parametrize("high", [8.0, 1e-42])
def test_tensor_whose_sample_is_zero_has_its_extremes(rule: str, high: float) -> None:
    statistics = TensorStatistics(low=0.0, high=high, values=np.zeros(100, np.float32))
    assert METHODS[rule](statistics) == (0.0, high)


def test_denormal_values_end_no_rule() -> None:
    statistics = TensorStatistics(low=0.0, high=1e-42, values=np.full(100, 1e-42, np.float32))
    assert all(np.isfinite(rule(statistics)).all() for rule in METHODS.values())
