"""Engines of every student family in fp32, fp16 and int8, built ahead of time for three generations of GPUs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgedistill.export import engines, float16, graphs, quantize
from edgedistill.export.onnx import export
from edgedistill.measurements import Engine
from edgedistill.recipe.schema import Export, Quantize
from edgedistill.records import Cost, OnnxModel, StudentSpec
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


def test_smallest_variants_cover_all_families() -> None:
    assert set(SMALLEST) == set(FAMILIES)


def student(family: str, spec: StudentSpec) -> torch.nn.Module:
    """Return the family's smallest net with a head, random weights and batch norm statistics of real activations."""
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


def graphs_of(family: str, px: int, folder: Path) -> list[OnnxModel]:
    """Write fp32, fp16 and int8 graphs to a folder as the pipeline does and return their records."""
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
    graphs.write(float16.half(onnx.load(path)), folder / "student.fp16.onnx")
    settings = Quantize(targets=("tensorrt",), calibration_images=8, method="minmax")
    (int8,) = quantize.quantize(path, fp32, images_NHWC=images, settings=settings, folder=folder)
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


def describe(family: str, px: int, engine: Engine) -> str:
    """Return the printed line of an engine."""
    if engine.failed or engine.layers is None:
        return f"{family:18}{px:4} {engine.artefact:14}{engine.capability:6} {engine.failed or 'no layers listed'}"
    types, weighted = engine.layers.types, Counter(engine.layers.weighted.values())
    return (
        f"{family:18}{px:4} {engine.artefact:14}{engine.capability:6}{engine.size_mb:7.2f} MB {engine.seconds:5.1f} s "
        f"{engine.layers.total:4} layers {types['int8']:4} int8 {types['fp16']:4} fp16 {types['fp32']:4} fp32 "
        f"{types['unknown']:2} ?  weighted {dict(weighted)}  Q/DQ {engine.layers.pairs:4} "
        f"unfused {len(engine.layers.unfused):3} unknown {len(engine.layers.unknown):3}"
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("family", "px"), [*((family, 64) for family in FAMILIES), ("mobilenetv3", 224)])
def test_every_family_builds(family: str, px: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra rtx)")
    built_engines = engines.write(graphs_of(family, px, tmp_path), tmp_path, tmp_path / "engines", CAPABILITIES)
    with capsys.disabled():
        print("", *(describe(family, px, engine) for engine in built_engines), sep="\n")
    assert [engine.failed for engine in built_engines] == [""] * 9
    for engine in built_engines:
        findings = engine.layers
        assert findings is not None and findings.types["unknown"] == 0 and findings.unknown == ()
        precisions = Counter(findings.weighted.values())
        if engine.artefact == "int8-tensorrt":
            # the builder computes some small products in generated kernels, which are not int8
            assert precisions["int8"] >= 0.9 * len(findings.weighted) and findings.types["int8"] >= precisions["int8"]
            assert findings.pairs > 0 and len(findings.unfused) < findings.pairs / 4
        else:
            assert precisions == {engine.artefact: len(findings.weighted)}
            assert findings.types["int8"] == findings.pairs == 0
