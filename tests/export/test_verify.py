"""The ladder: rungs in order, numbers calculated by hand, and gates that are recorded instead of raised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from edgedistill.errors import EdgeDistillError
from edgedistill.export import infer, qdq, verify
from edgedistill.export.infer import artifact_name, predict_onnx
from edgedistill.export.quantize import quantize
from edgedistill.export.verify import accuracy, ladder
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
LadderOver = Callable[..., tuple[Ladder, dict[str, np.ndarray]]]


def test_artifact_names() -> None:
    assert [artifact_name(model) for model in (FP32, CPU, TENSORRT)] == ["fp32", "int8-cpu", "int8-tensorrt"]


@pytest.fixture
def ladder_over(monkeypatch: pytest.MonkeyPatch) -> LadderOver:
    """Return a function that climbs the ladder over given logits per file; all labels are 0."""

    def run_ladder(torch_NC: np.ndarray, **files: np.ndarray) -> tuple[Ladder, dict[str, np.ndarray]]:
        simulated = {}

        def predict(path: Path, images_NHWC: np.ndarray, *, simulate: bool) -> np.ndarray:
            simulated[path.stem] = simulate
            return files[path.stem]

        monkeypatch.setattr(verify, "predict_onnx", predict)
        models = [model for model in (FP32, CPU, TENSORRT) if Path(model.path).stem in files]
        count = len(torch_NC)
        outcome = ladder(
            torch_NC,
            models,
            run=Path("run"),
            images_NHWC=pictures(count, px=8),
            score=partial(accuracy, labels_N=np.zeros(count, int)),
            settings=Export(),
        )
        assert simulated == {name: name == "tensorrt" for name in files}
        return outcome

    return run_ladder


def test_rungs_gates_and_worst_images_match_hand_calculation(ladder_over: LadderOver) -> None:
    torch_NC = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [4.0, 0.0]], dtype=np.float32)  # labels 0, 1, 0, 0
    cpu = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.5], [4.0, 0.0]], dtype=np.float32)  # 0, 0, 0, 0
    tensorrt = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 3.0], [4.0, 0.0]], dtype=np.float32)  # 0, 1, 1, 0
    ladder_record, logits = ladder_over(torch_NC, fp32=torch_NC + 0.002, cpu=cpu, tensorrt=tensorrt)
    assert (
        [rung.artefact for rung in ladder_record.rungs]
        == ["torch", "fp32", "int8-cpu", "int8-tensorrt"]
        == list(logits)
    )
    assert [rung.accuracy.top1 for rung in ladder_record.rungs] == [0.75, 0.75, 1.0, 0.5]
    assert [rung.agreement_with_torch for rung in ladder_record.rungs] == [1.0, 1.0, 0.75, 0.75]
    assert [rung.simulated for rung in ladder_record.rungs] == [False, False, False, True]
    assert [rung.sha256[0] for rung in ladder_record.rungs] == ["c", "a", "b", "d"]
    agreement, error = ladder_record.gates
    assert (agreement.name, agreement.value, agreement.bound, agreement.passed) == ("fp32 agreement", 1.0, ">= 1", True)
    assert (error.name, error.bound, error.passed) == ("fp32 relative error", "<= 0.001", True)
    assert error.value == pytest.approx(0.002 / 4, rel=1e-3)
    # p(0) in torch and in the int8 graph: image 1 0.12 -> 0.88 (cpu), image 2 0.73 -> 0.05 (tensorrt); 0 and 3 agree
    assert ladder_record.worst == (1, 2)


def test_failing_gate_is_recorded_without_error(ladder_over: LadderOver, tmp_path: Path) -> None:
    torch_NC = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    ladder_record, _ = ladder_over(torch_NC, fp32=np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32))
    assert [(gate.value, gate.passed) for gate in ladder_record.gates] == [(0.5, False), (1.0, False)]
    assert ladder_record.worst == ()
    write_record(tmp_path / "ladder.json", ladder_record)
    assert read_record(tmp_path / "ladder.json", Ladder) == ladder_record


def test_at_most_twelve_worst_images_are_listed(ladder_over: LadderOver) -> None:
    steps = np.linspace(0.1, 2.0, 20, dtype=np.float32)
    torch_NC = np.zeros((20, 2), dtype=np.float32)
    ladder_record, _ = ladder_over(torch_NC, fp32=torch_NC, cpu=np.stack([steps, -steps], axis=1))
    assert ladder_record.worst == tuple(range(19, 7, -1))


def test_ladder_over_real_files_passes(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    student = exported("resnet")
    settings = Quantize(calibration_images=24)
    records = quantize(
        student.path, student.record, images_NHWC=student.images_NHWC, settings=settings, folder=tmp_path / "quantize"
    )
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / student.path.name).write_bytes(student.path.read_bytes())
    models = [dataclasses.replace(student.record, path=f"export/{student.record.path}")]
    models += [dataclasses.replace(record, path=f"quantize/{record.path}") for record in records]
    images = pictures(20, seed=4)
    with torch.inference_mode():
        torch_NC = student.model(normalized(images)).numpy()
    ladder_record, logits = ladder(
        torch_NC,
        models,
        run=tmp_path,
        images_NHWC=images,
        score=partial(accuracy, labels_N=torch_NC.argmax(1)),
        settings=Export(),
    )
    assert all(gate.passed for gate in ladder_record.gates)
    assert [rung.accuracy.top1 for rung in ladder_record.rungs] == [
        rung.agreement_with_torch for rung in ladder_record.rungs
    ]
    for name in ("int8-cpu", "int8-tensorrt"):
        assert 0 < infer.relative_error(torch_NC, logits[name]) < 0.3


def test_simulated_graph_matches_onnx_reference(
    exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    graph, images = qdq.int8_graph(*ranged("resnet"), "tensorrt"), exported("resnet").images_NHWC[:4]
    expected = ReferenceEvaluator(graph).run(None, {"images": images})[0]
    # the remaining differences are float32 sums that round the other way
    np.testing.assert_allclose(
        predict_onnx(graph.SerializeToString(), images, simulate=True), expected, atol=0.02 * np.abs(expected).max()
    )


def test_batches_are_joined_in_order(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    images = pictures(infer.BATCH + 3, seed=5)
    batched_NC = predict_onnx(student.path, images, threads=1)
    single_NC = np.concatenate(
        [predict_onnx(student.path, images[index : index + 1]) for index in (0, 3, infer.BATCH + 2)]
    )
    np.testing.assert_allclose(batched_NC[[0, 3, infer.BATCH + 2]], single_NC, atol=1e-4)


def test_invalid_graph_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(b"not a graph")
    with pytest.raises(
        EdgeDistillError, match=r"student\.onnx: ONNX Runtime cannot load it .*; run `edgedistill export` again"
    ):
        predict_onnx(tmp_path / "student.onnx", pictures(1))
