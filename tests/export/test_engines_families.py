"""Every family that the search offers, built ahead of time in fp32, fp16 and int8 for three generations of GPUs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgedistill.export import engines, graphs, quantize
from edgedistill.export.onnx import export
from edgedistill.recipe.schema import Export, Quantize
from edgedistill.records import Cost, Engine, OnnxModel, StudentSpec
from edgedistill.students.families import FAMILIES
from tests.helpers.export_nets import pictures

pytestmark = pytest.mark.slow
CAPABILITIES = ("sm86", "sm89", "sm120")
CLASSES = 5
SMALLEST = {
    "efficientnet_lite": {"variant": 0},
    "mobilenetv2": {"width": "050"},
    "mobilenetv3": {"size": "small_050"},
    "mobilenetv4": {"size": "conv_small_050"},
    "resnet": {"depth": "10t"},
    "regnet": {"size": "002"},
    "mobileone": {"size": "s0"},
    "repvgg": {"size": "a0"},
    "lcnet": {"width": "050"},
    "tinynet": {"size": "e"},
    "mnasnet": {"size": "small"},
    "ghostnet": {"width": "100"},
    "timm": {"model": "mobilenetv4_conv_small_050"},
    "micro": {"width": 8},
}


def test_every_family_is_here() -> None:
    assert set(SMALLEST) == set(FAMILIES)


def student(family: str, spec: StudentSpec) -> torch.nn.Module:
    """The family's smallest net with a head, batch norms that have seen pictures, random weights."""
    options = SMALLEST[family]
    blueprint = FAMILIES[family](**({} if family == "micro" else {"weights": "none"}), **options)
    torch.manual_seed(3)
    backbone = blueprint.build()
    images = torch.from_numpy(pictures(8, spec.input_px, seed=5).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        width = backbone.eval()(images).shape[1]
        for module in backbone.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        backbone(images)
    return torch.nn.Sequential(backbone, torch.nn.Linear(width, CLASSES)).eval()


def made(family: str, px: int, folder: Path) -> list[OnnxModel]:
    """fp32, fp16 and int8 graphs in a folder, as the pipeline makes them."""
    spec = StudentSpec(
        family=family,
        options={},
        input_px=px,
        num_classes=CLASSES,
        cost=Cost(macs_m=0.0, params_m=0.0, weights_mb=0.0),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    images, path = pictures(8, px), folder / "student.fp32.onnx"
    fp32 = export(
        student(family, spec),
        spec,
        path=path,
        images_NHWC=images,
        settings=Export(min_agreement=0.0, max_relative_error=1.0),
    )
    graphs.write(graphs.half(onnx.load(path)), folder / "student.fp16.onnx")
    asked = Quantize(targets=("tensorrt",), calibration_images=8, method="minmax")
    (int8,) = quantize.quantize(path, fp32, images_NHWC=images, settings=asked, folder=folder)
    half = OnnxModel(
        path="student.fp16.onnx",
        sha256="",
        precision="fp16",
        target="tensorrt",
        opset=fp32.opset,
        parent_sha256=fp32.sha256,
        size_mb=0.0,
    )
    return [fp32, half, int8]


def row(family: str, px: int, one: Engine) -> str:
    """What is printed of an engine."""
    if one.failed or one.layers is None:
        return f"{family:18}{px:4} {one.artefact:14}{one.capability:6} {one.failed or 'no layers listed'}"
    types, weighted = one.layers.types, Counter(one.layers.weighted.values())
    return (
        f"{family:18}{px:4} {one.artefact:14}{one.capability:6}{one.size_mb:7.2f} MB {one.seconds:5.1f} s "
        f"{one.layers.total:4} layers {types['int8']:4} int8 {types['fp16']:4} fp16 {types['fp32']:4} fp32 "
        f"{types['unknown']:2} ?  weighted {dict(weighted)}  Q/DQ {one.layers.pairs:4} "
        f"unfused {len(one.layers.unfused):3} unknown {len(one.layers.unknown):3}"
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("family", "px"), [*((family, 64) for family in FAMILIES), ("mobilenetv3", 224)])
def test_every_family_builds(family: str, px: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra rtx)")
    found = engines.write(made(family, px, tmp_path), tmp_path, tmp_path / "engines", CAPABILITIES)
    with capsys.disabled():
        print("", *(row(family, px, one) for one in found), sep="\n")
    assert [one.failed for one in found] == [""] * 9
    for one in found:
        known = one.layers
        assert known is not None and known.types["unknown"] == 0 and known.unknown == ()
        precisions = Counter(known.weighted.values())
        if one.artefact == "int8-tensorrt":
            # the builder multiplies some products of a few numbers in generated kernels, which are no int8
            assert precisions["int8"] >= 0.9 * len(known.weighted) and known.types["int8"] >= precisions["int8"]
            assert known.pairs > 0 and len(known.unfused) < known.pairs / 4
        else:
            assert precisions == {one.artefact: len(known.weighted)}
            assert known.types["int8"] == known.pairs == 0
