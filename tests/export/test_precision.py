"""The choice of precision for a target: every branch, and the sentence that explains it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgedistill.export.precision import choose_precision, describe_guard, higher_precision, speed_ratio
from edgedistill.measurements import BenchReport, Latency
from edgedistill.records import Drop, Guarded, Kept, OnnxModel

FP32 = OnnxModel(path="fp32.onnx", sha256="a", precision="fp32", target="any", opset=20, parent_sha256="", size_mb=4.0)
FP16 = OnnxModel(
    path="fp16.onnx", sha256="b", precision="fp16", target="tensorrt", opset=20, parent_sha256="a", size_mb=2.0
)
CPU = OnnxModel(path="cpu.onnx", sha256="c", precision="int8", target="cpu", opset=20, parent_sha256="a", size_mb=1.0)
TENSORRT = OnnxModel(
    path="tensorrt.onnx", sha256="d", precision="int8", target="tensorrt", opset=20, parent_sha256="a", size_mb=1.0
)
MODELS = [FP32, FP16, CPU, TENSORRT]

SMALL = Drop(points=0.42, low=-0.31, high=1.15, n=480, differ=0.9, images=736)
LARGE = Drop(points=3.0, low=1.0, high=5.0, n=100, differ=4.0, images=200)
PASSED = Guarded(target="cpu", holds=True, max_drop=1.0, drop=SMALL)
FAST, SLOW = (2.0, 1.5, 2.5), (1.2, 1.0, 1.4)
LOSS = "loses 0.4 points [-0.3, 1.1] on 480 images of val"


def test_accurate_and_fast_int8_is_kept() -> None:
    assert choose_precision("cpu", MODELS, guarded=PASSED, min_speedup=1.05, ratio=FAST, untimed="") == Kept(
        target="cpu",
        artefact="int8-cpu",
        precision="int8",
        why=f"{LOSS}; 2.00 [1.50, 2.50] times as fast as fp32",
        ratio=FAST,
    )


def test_int8_that_loses_too_much_is_not_kept() -> None:
    guarded = Guarded(target="cpu", holds=False, max_drop=1.0, drop=LARGE)
    assert choose_precision("cpu", MODELS, guarded=guarded, min_speedup=1.05, ratio=FAST, untimed="") == Kept(
        target="cpu",
        artefact="fp32",
        precision="fp32",
        why="int8 loses 3.00 points [1.0, 5.0] on 100 images of val, at most 1 may be lost",
        ratio=FAST,
    )


def test_untimed_int8_is_kept_for_its_accuracy() -> None:
    assert choose_precision(
        "cpu", MODELS, guarded=PASSED, min_speedup=1.05, ratio=None, untimed="no device was measured"
    ) == Kept(target="cpu", artefact="int8-cpu", precision="int8", why=f"{LOSS}; no device was measured")


@pytest.mark.parametrize(("low", "precision"), [(1.0, "fp32"), (1.05, "fp32"), (1.06, "int8")])
def test_lower_end_of_speed_interval_must_exceed_min_speedup(low: float, precision: str) -> None:
    kept = choose_precision("cpu", MODELS, guarded=PASSED, min_speedup=1.05, ratio=(1.2, low, 1.4), untimed="")
    assert kept.precision == precision
    assert kept.ratio == (1.2, low, 1.4)


def test_too_slow_int8_is_explained_in_numbers() -> None:
    assert choose_precision("cpu", MODELS, guarded=PASSED, min_speedup=1.05, ratio=SLOW, untimed="").why == (
        "int8 is 1.20 [1.00, 1.40] times as fast as fp32, and more than 1.05 is required"
    )


def test_speed_alone_decides_without_val_images() -> None:
    unknown = "its accuracy was not guarded: there are no images to compare on"
    kept = choose_precision("cpu", MODELS, guarded=None, min_speedup=1.05, ratio=FAST, untimed="")
    assert (kept.artefact, kept.why) == ("int8-cpu", f"{unknown}; 2.00 [1.50, 2.50] times as fast as fp32")
    assert choose_precision("cpu", MODELS, guarded=None, min_speedup=1.05, ratio=SLOW, untimed="").artefact == "fp32"
    assert (
        choose_precision("cpu", MODELS, guarded=None, min_speedup=1.05, ratio=None, untimed="not bench_report").why
        == f"{unknown}; not bench_report"
    )


@pytest.mark.parametrize(
    ("target", "models", "artifact"),
    [
        ("cpu", MODELS, "fp32"),
        ("tensorrt", MODELS, "fp16"),
        ("tensorrt", [TENSORRT, FP32], "fp32"),
        ("tensorrt", MODELS[::-1], "fp16"),
    ],
)
def test_tensorrt_falls_back_to_fp16_when_available(target: str, models: list[OnnxModel], artifact: str) -> None:
    assert higher_precision(target, models).name == artifact
    kept = choose_precision(
        target, models, guarded=replace(PASSED, target=target), min_speedup=1.05, ratio=SLOW, untimed=""
    )
    assert (kept.target, kept.artefact, kept.precision) == (target, artifact, artifact)
    assert f"times as fast as {artifact}," in kept.why


def test_tensorrt_gets_its_own_int8_graph() -> None:
    assert (
        choose_precision("tensorrt", MODELS, guarded=PASSED, min_speedup=1.05, ratio=FAST, untimed="").artefact
        == "int8-tensorrt"
    )


def test_float_layers_are_counted_with_loss_before_guard() -> None:
    guarded = replace(PASSED, floats=("a", "b"), before=LARGE)
    assert describe_guard(guarded) == f"{LOSS} with 2 layers in float (3.0 without)"


def test_loss_above_bound_with_few_changed_labels_is_explained() -> None:
    one_of_sixty = Drop(points=1.67, low=-1.6, high=4.8, n=60, differ=0.63, images=316)
    assert describe_guard(Guarded(target="cpu", holds=True, max_drop=1.0, drop=one_of_sixty)) == (
        "loses 1.7 points [-1.6, 4.8] on 60 images of val, but other labels than fp32's on only 0.6 % of 316 images"
    )


def bench_report(ms: list[list[float]]) -> BenchReport:
    """Return a measurement with two samples per cell around its median in `ms`, one list of rounds per process."""
    samples = tuple(ms_ * factor for rounds in ms for ms_ in rounds for factor in (0.5, 1.5))
    cells = [[process, round_, 2] for process, rounds in enumerate(ms) for round_ in range(len(rounds))]
    return BenchReport(
        device="local",
        backend="tensorrt",
        backend_version="10.3",
        artefact="fp16",
        sha256="a" * 64,
        precision="fp16",
        latency=Latency(samples_ms=samples, warmup_ms=(), window=""),
        accuracy=None,
        agreement_with_host=None,
        facts={"cells": cells},
    )


def test_ratio_pairs_cells_of_one_run() -> None:
    higher, int8 = [[4.0] * 3, [8.0] * 3, [6.0] * 3], [[2.0] * 3] * 3
    # 2 in one process, 4 in another and 3 in the last
    assert speed_ratio(bench_report(higher), bench_report(int8)) == (3.0, 2.0, 4.0)
    assert speed_ratio(bench_report(higher), bench_report([*int8[:2], [2.0]])) is None
    assert speed_ratio(bench_report(higher), bench_report([])) is None


@pytest.mark.parametrize(
    ("unlabeled", "trained", "witnesses"),
    [
        (0, 0, "480 images of val"),
        (480, 0, "480 images without a label"),
        (450, 0, "30 images of val and 450 without a label"),
        (480, 480, "480 images that the student was trained on, for want of others"),
        (480, 460, "480 images, 460 of which the student was trained on, for want of others"),
    ],
)
def test_images_that_the_loss_was_measured_on_are_named(unlabeled: int, trained: int, witnesses: str) -> None:
    guarded = replace(PASSED, drop=replace(SMALL, unlabeled=unlabeled, trained=trained))
    assert describe_guard(guarded).endswith(f"on {witnesses}")


def test_loss_above_bound_that_is_not_shown_says_so() -> None:
    drop = replace(LARGE, points=1.5, low=-0.4, high=3.4, shown=0.3)
    assert describe_guard(Guarded(target="cpu", holds=True, max_drop=1.0, drop=drop)) == (
        "loses 1.5 points [-0.4, 3.4] on 100 images of val, but that more than 1 is lost is not shown"
    )


@pytest.mark.parametrize(
    ("points", "differ", "shown", "said"), [(0.2, 6.3, -0.1, True), (0.2, 6.3, 0.1, False), (0.2, 2.0, -0.1, False)]
)
def test_many_changed_labels_that_lose_nothing_are_named(
    points: float, differ: float, shown: float, said: bool
) -> None:
    drop = replace(SMALL, points=points, differ=differ, shown=shown)
    text = describe_guard(Guarded(target="cpu", holds=True, max_drop=1.0, drop=drop))
    assert ("it answers otherwise on 6.3 % of 736 images, and no loss is shown" in text) == said


def test_choice_among_sets_of_float_layers_is_named() -> None:
    guarded = replace(PASSED, floats=("a", "b"), before=LARGE, sets=3)
    assert describe_guard(guarded).endswith("with 2 layers in float (3.0 without), the cheapest of 3 choices")
    assert describe_guard(replace(guarded, timed=True)).endswith("the fastest of 3 choices")
