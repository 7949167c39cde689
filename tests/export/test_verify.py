"""The ladder: rungs in order, numbers worked out by hand, gates recorded and not raised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from edgedistill.errors import EdgeDistillError
from edgedistill.export import infer, qdq, verify
from edgedistill.export.infer import artefact_name, predict_onnx
from edgedistill.export.quantize import quantize
from edgedistill.export.verify import ladder
from edgedistill.recipe.schema import Export, Quantize
from edgedistill.records import Ladder, OnnxModel
from edgedistill.run.files import read_record, write_record
from tests.helpers.export_nets import Exported, Ranged, normalized, pictures

FP32 = OnnxModel(
    path="fp32.onnx", sha256="a" * 64, precision="fp32", target="any", opset=20, parent_sha256="c" * 64, size_mb=1.0
)
CPU = OnnxModel(
    path="cpu.onnx", sha256="b" * 64, precision="int8", target="cpu", opset=20, parent_sha256="a" * 64, size_mb=0.3
)
TENSORRT = OnnxModel(
    path="tensorrt.onnx",
    sha256="d" * 64,
    precision="int8",
    target="tensorrt",
    opset=20,
    parent_sha256="a" * 64,
    size_mb=0.3,
)


def test_names_of_artefacts() -> None:
    assert [artefact_name(model) for model in (FP32, CPU, TENSORRT)] == ["fp32", "int8-cpu", "int8-tensorrt"]


@pytest.fixture
def climb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Ladder, dict[str, np.ndarray]]]:
    """A ladder over made-up logits per file, labels all 0."""

    def go(torch_NC: np.ndarray, **files: np.ndarray) -> tuple[Ladder, dict[str, np.ndarray]]:
        simulated = {}

        def predict(path: Path, images_NHWC: np.ndarray, *, simulate: bool) -> np.ndarray:
            simulated[path.stem] = simulate
            return files[path.stem]

        monkeypatch.setattr(verify, "predict_onnx", predict)
        models = [model for model in (FP32, CPU, TENSORRT) if Path(model.path).stem in files]
        n = len(torch_NC)
        result = ladder(
            torch_NC,
            models,
            run=Path("run"),
            images_NHWC=pictures(n, px=8),
            labels_N=np.zeros(n, int),
            settings=Export(),
        )
        assert simulated == {name: name == "tensorrt" for name in files}
        return result

    return go


def test_rungs_gates_and_worst_images_by_hand(climb: Callable[..., tuple[Ladder, dict[str, np.ndarray]]]) -> None:
    torch_NC = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [4.0, 0.0]], dtype=np.float32)  # labels 0, 1, 0, 0
    cpu = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.5], [4.0, 0.0]], dtype=np.float32)  # 0, 0, 0, 0
    tensorrt = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 3.0], [4.0, 0.0]], dtype=np.float32)  # 0, 1, 1, 0
    result, logits = climb(torch_NC, fp32=torch_NC + 0.002, cpu=cpu, tensorrt=tensorrt)
    assert [rung.artefact for rung in result.rungs] == ["torch", "fp32", "int8-cpu", "int8-tensorrt"] == list(logits)
    assert [rung.accuracy.top1 for rung in result.rungs] == [0.75, 0.75, 1.0, 0.5]
    assert [rung.agreement_with_torch for rung in result.rungs] == [1.0, 1.0, 0.75, 0.75]
    assert [rung.simulated for rung in result.rungs] == [False, False, False, True]
    assert [rung.sha256[0] for rung in result.rungs] == ["c", "a", "b", "d"]
    agreement, error = result.gates
    assert (agreement.name, agreement.value, agreement.bound, agreement.passed) == ("fp32 agreement", 1.0, ">= 1", True)
    assert (error.name, error.bound, error.passed) == ("fp32 relative error", "<= 0.001", True)
    assert error.value == pytest.approx(0.002 / 4, rel=1e-3)
    # p(0) in torch and in the int8 graph: image 1 0.12 -> 0.88 (cpu), image 2 0.73 -> 0.05 (tensorrt); 0 and 3 agree
    assert result.worst == (1, 2)


def test_a_failing_gate_is_recorded(climb: Callable[..., tuple[Ladder, dict[str, np.ndarray]]], tmp_path: Path) -> None:
    torch_NC = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    result, _ = climb(torch_NC, fp32=np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32))
    assert [(gate.value, gate.passed) for gate in result.gates] == [(0.5, False), (1.0, False)]
    assert result.worst == ()
    write_record(tmp_path / "ladder.json", result)
    assert read_record(tmp_path / "ladder.json", Ladder) == result


def test_no_more_than_twelve_images_are_named(climb: Callable[..., tuple[Ladder, dict[str, np.ndarray]]]) -> None:
    steps = np.linspace(0.1, 2.0, 20, dtype=np.float32)
    torch_NC = np.zeros((20, 2), dtype=np.float32)
    result, _ = climb(torch_NC, fp32=torch_NC, cpu=np.stack([steps, -steps], axis=1))
    assert result.worst == tuple(range(19, 7, -1))


def test_the_ladder_over_real_files(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("resnet")
    settings = Quantize(calibration_images=24)
    records = quantize(
        made.path, made.record, images_NHWC=made.images_NHWC, settings=settings, folder=tmp_path / "quantize"
    )
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / made.path.name).write_bytes(made.path.read_bytes())
    models = [dataclasses.replace(made.record, path=f"export/{made.record.path}")]
    models += [dataclasses.replace(record, path=f"quantize/{record.path}") for record in records]
    images = pictures(20, seed=4)
    with torch.inference_mode():
        torch_NC = made.model(normalized(images)).numpy()
    result, logits = ladder(
        torch_NC, models, run=tmp_path, images_NHWC=images, labels_N=torch_NC.argmax(1), settings=Export()
    )
    assert all(gate.passed for gate in result.gates)
    assert [rung.accuracy.top1 for rung in result.rungs] == [rung.agreement_with_torch for rung in result.rungs]
    for name in ("int8-cpu", "int8-tensorrt"):
        assert 0 < infer.relative_error(torch_NC, logits[name]) < 0.3


def test_a_simulated_graph_is_computed_as_written(
    exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    graph, images = qdq.int8_graph(*ranged("resnet"), "tensorrt"), exported("resnet").images_NHWC[:4]
    wanted = ReferenceEvaluator(graph).run(None, {"images": images})[0]
    # what is left is where float32 sums fall on the other side of a rounding
    np.testing.assert_allclose(
        predict_onnx(graph.SerializeToString(), images, simulate=True), wanted, atol=0.02 * np.abs(wanted).max()
    )


def test_batches_are_put_together_in_order(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    images = pictures(infer.BATCH + 3, seed=5)
    whole = predict_onnx(made.path, images, threads=1)
    one_by_one = np.concatenate([predict_onnx(made.path, images[at : at + 1]) for at in (0, 3, infer.BATCH + 2)])
    np.testing.assert_allclose(whole[[0, 3, infer.BATCH + 2]], one_by_one, atol=1e-4)


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(b"not a graph")
    with pytest.raises(EdgeDistillError, match=r"student\.onnx: ONNX Runtime cannot load it .*; export it again"):
        predict_onnx(tmp_path / "student.onnx", pictures(1))
