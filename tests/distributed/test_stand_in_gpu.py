"""Nothing mixes devices: trainings, sources and fake quantization on a stand-in GPU compute what a CPU computes.

The stand-in (tests/helpers/stand_in_gpu.py) raises where CUDA raises. It cannot show that CUDA's kernels are right or
fast: that is for tier `gpu`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgedistill.distill import evaluate, loop
from edgedistill.distill.batches import Task
from edgedistill.distill.loop import TrainedStudent
from edgedistill.distill.methods import METHODS
from edgedistill.distill.teachers import TEACHERS
from edgedistill.errors import EdgeDistillError
from edgedistill.export import fake_quant
from edgedistill.recipe.schema import Source
from edgedistill.sources import outputs, registry
from edgedistill.students.build import build_student
from tests.distill.test_loop_needs import material_with_teacher
from tests.export.test_fake_quant import ranges_of
from tests.helpers.export_nets import PX, SPEC, Exported, pictures
from tests.helpers.stand_in_gpu import WAITS, GpuTensor, stand_in_gpu
from tests.helpers.tiny import task

STEPS = 3


class KilledError(Exception):
    """Simulates the death of the process."""


def train(
    training_task: Task, folder: Path | None = None, killed_after: int = -1
) -> tuple[TrainedStudent, list[float]]:
    losses: list[float] = []

    def on_step(step: int, scalars: object) -> None:
        assert isinstance(scalars, dict)
        losses.append(scalars["loss"])
        if step == killed_after:
            raise KilledError

    model = build_student(training_task.spec, seed=1)
    return loop.fit(model, training_task, folder, on_step), losses


def weights(fitted: TrainedStudent) -> dict[str, bytes]:
    return {name: tensor.cpu().numpy().tobytes() for name, tensor in fitted.model.state_dict().items()}


def method_task(name: str, steps: int = STEPS, **settings: object) -> Task:
    choice = {"name": name, "source": "also"} if name == "single" else {"name": name}
    return task(steps, material_with_teacher(), method=choice, precision="float32", **settings)


def test_stand_in_raises_as_cuda_does() -> None:
    with stand_in_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            here[torch.zeros(1, dtype=torch.long, device="cuda")]
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]  # CUDA takes a number of the CPU
        assert there[torch.tensor([0])].cpu().tolist() == [1.0]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_a_gpu_as_on_a_cpu(name: str, cpu: None) -> None:
    fitted, losses = train(method_task(name))
    with stand_in_gpu() as kept:
        on_gpu, losses_on_gpu = train(method_task(name))
        assert all(isinstance(weight, GpuTensor) for weight in on_gpu.model.parameters())
    assert losses_on_gpu == losses and weights(on_gpu) == weights(fitted)
    assert on_gpu.val == fitted.val and on_gpu.loss == fitted.loss
    assert len(kept) == STEPS  # each step keeps the GPU's own random state


@pytest.mark.parametrize("name", METHODS)
def test_gpu_is_waited_for_only_where_losses_are_read(name: str, cpu: None) -> None:
    waits = {}
    with stand_in_gpu():
        for steps in (10, 30):
            WAITS.clear()
            # without a file or an evaluation in between; torchvision's RandAugment makes numbers of its own on the GPU
            train(method_task(name, steps, evaluate_every=1000, checkpoint_every=1000, strong={"ops": 0}))
            waits[steps] = Counter(WAITS)
    assert waits[30] - waits[10] == Counter({"tolist": 2})


def test_losses_are_read_before_what_waits_anyway(tmp_path: Path, cpu: None) -> None:
    job, told = method_task("transfer", 24, evaluate_every=7, checkpoint_every=1000), list[tuple[int, int]]()

    def on_step(step: int, scalars: object) -> None:
        told.append((step, WAITS.count("tolist")))

    rungs: dict[int, Callable[[object], object]] = {17: lambda score: None}
    with stand_in_gpu():
        WAITS.clear()
        loop.fit(build_student(job.spec, seed=1), job, tmp_path, on_step, rungs=rungs)
    assert [step for step, _ in told] == list(range(1, 25))
    reads = [[step for step, count in told if count == read] for read in dict.fromkeys(count for _, count in told)]
    assert [steps[-1] for steps in reads] == [7, 10, 14, 17, 20, 21, 24]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25)) and len({line["lr"] for line in lines}) > 20
    assert [line["step"] for line in lines if "val" in line] == [7, 14, 21, 24]


def test_loss_that_is_not_finite_is_noticed_before_it_is_kept(tmp_path: Path, cpu: None) -> None:
    job = method_task("transfer", 30, lr=1e30, checkpoint_every=5, evaluate_every=1000)
    with (
        stand_in_gpu(),
        pytest.raises(EdgeDistillError, match=r"not finite at step [234], noticed at step 5; lower distill\.lr"),
    ):
        train(job, tmp_path)
    assert not (tmp_path / "last.pt").exists()


def test_killed_run_resumes_on_a_gpu_to_the_same_bytes(tmp_path: Path, cpu: None) -> None:
    job = method_task("consistent", steps=4, checkpoint_every=2)
    with stand_in_gpu():
        uninterrupted, _ = train(job, tmp_path / "whole")
        with pytest.raises(KilledError):
            train(job, tmp_path / "killed", killed_after=3)
        resumed, losses = train(job, tmp_path / "killed")
    assert len(losses) == 2 and weights(resumed) == weights(uninterrupted)


def test_evaluation_on_a_gpu_gives_numbers_of_the_cpu(cpu: None) -> None:
    job = method_task("weighted")
    expected_NC = evaluate.logits(build_student(job.spec, 1), job.spec, job.material.images_NHWC)
    with stand_in_gpu():
        model = build_student(job.spec, 1).to("cuda")
        logits_NC = evaluate.logits(model, job.spec, job.material.images_NHWC)
    np.testing.assert_array_equal(logits_NC, expected_NC)


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_compute_on_the_cpu_also_beside_a_gpu(name: str) -> None:
    random, labels_L = np.random.default_rng(0), np.arange(12) % 2
    features = {"one": (random.normal(size=(40, 6)) + (np.arange(40) % 2)[:, None]).astype(np.float32)}
    with stand_in_gpu():
        teacher = TEACHERS[name].fit(features, {"one": 1.0}, rows=np.arange(12), labels_L=labels_L, classes=2)
        assert type(teacher.probs_NC) is np.ndarray and type(teacher.predict(features)) is np.ndarray


@pytest.mark.parametrize("settings", [{"kind": "timm", "model": "mobilenetv2_035", "pretrained": False}], ids=["timm"])
def test_source_runs_on_a_gpu_as_on_a_cpu(settings: dict[str, object], tmp_path: Path, cpu: None) -> None:
    images_NHWC = pictures(5, px=32)
    section = Source.model_validate({"name": "one", "input_px": 32, **settings})
    torch.manual_seed(0)
    expected = outputs.infer(registry.load(section, tmp_path), images_NHWC, batch=2)
    with stand_in_gpu():
        torch.manual_seed(0)
        network = registry.load(section, tmp_path)
        features_ND, probs_NK = outputs.infer(network, images_NHWC, batch=2)
    np.testing.assert_array_equal(features_ND, expected[0])
    np.testing.assert_array_equal(probs_NK, expected[1])


def test_onnx_source_takes_images_of_a_gpu(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    section = Source.model_validate({"name": "one", "kind": "onnx", "file": str(exported("lite").path)})
    with stand_in_gpu():
        features_ND, probs_NK = outputs.infer(registry.load(section, tmp_path), pictures(3), batch=2)
    assert len(features_ND) == 3 and probs_NK is not None and probs_NK.sum(axis=1) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_fake_quantization_trains_on_a_gpu_as_on_a_cpu(
    target: str, exported: Callable[[str], Exported], cpu: None
) -> None:
    student, images_NHWC = exported("lite"), pictures(40, px=PX)
    model, ranges = onnx.load(student.path), ranges_of(student)
    job = task(2, method="weighted", precision="float32")
    material = job.material.__class__(**{**vars(job.material), "images_NHWC": images_NHWC})
    job = Task(spec=SPEC, material=material, settings=job.settings, steps=2, seed=7)

    def tune() -> tuple[TrainedStudent, list[float]]:
        losses: list[float] = []
        net = fake_quant.student(model, ranges, target, learned=True)  # type: ignore[arg-type]
        return loop.fit(net, job, None, lambda step, scalars: losses.append(scalars["loss"])), losses

    fitted, losses = tune()
    with stand_in_gpu():
        on_gpu, losses_on_gpu = tune()
        assert isinstance(next(on_gpu.model.parameters()), GpuTensor)
        graph, learned = fake_quant.trained_graph(model, on_gpu.model)
    assert losses_on_gpu == losses and weights(on_gpu) == weights(fitted)
    assert learned == fake_quant.trained_graph(model, fitted.model)[1] and graph.graph.node
