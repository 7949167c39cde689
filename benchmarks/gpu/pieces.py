"""The pieces of `python -m benchmarks.gpu`: each is a function from its settings to lines."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import scale, step_cost
from benchmarks.peer_torchdistill.settings import SETTINGS, Setting
from benchmarks.suite import protocol
from edgedistill.agent.metrics import percentiles
from edgedistill.distill import batches, loop, state
from edgedistill.distill.ahead import step_batches
from edgedistill.distributed.device import autocast, default_device
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import Device
from edgedistill.recipe.schema import Bench, Export, Quantize, Student
from edgedistill.records import OnnxModel, StudentSpec
from edgedistill.students import space
from edgedistill.students.build import build_student

if TYPE_CHECKING:
    from torch import Tensor

Line = dict[str, Any]
ROOT = Path(__file__).parents[2]
STUDENTS: dict[str, dict[str, Any]] = {
    "efficientnet_lite at 128 px": {"efficientnet_lite": {"variant": 0, "input_px": 128, "weights": "none"}},
    "efficientnet_lite at 224 px": {"efficientnet_lite": {"variant": 0, "input_px": 224, "weights": "none"}},
    "micro at 64 px": {"micro": {"width": 16, "input_px": 64}},
    "micro at 128 px": {"micro": {"width": 32, "input_px": 128}},
}
RUNTIMES = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the packs and the runs are, how much is measured, and the end."""

    packs: Path
    runs: Path
    steps: int = 20
    rounds: int = 5
    warm: int = 5
    rehearsal: bool = False
    end: float = float("inf")  # of time.monotonic

    @property
    def minutes_left(self) -> float:
        """Minutes until no further work is begun."""
        return (self.end - time.monotonic()) / 60


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of the measurement that is done as a whole; `least_minutes` must be left to begin it."""

    name: str
    measure: Callable[[Settings], Iterator[Line]]
    least_minutes: float = 0.5


def tier(settings: Settings) -> Iterator[Line]:
    """Run the tests of tier `gpu`; in a rehearsal, without a GPU, all of them are skipped."""
    started = time.monotonic()
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "tests/distributed/test_gpu.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", completed.stdout)}
    yield {"tests": counts, "exit_code": completed.returncode, "seconds": round(time.monotonic() - started, 1)}
    if completed.returncode:
        print(completed.stdout[-4000:], file=sys.stderr)
        raise EdgeDistillError("tests of tier gpu fail", "see above")


def training(students: dict[str, Any], settings: Settings) -> Iterator[Line]:
    """Images a second of edgedistill's step beside a bare loop over the same net, in turns."""
    for student in students:
        spec = space.candidates(Student(families=students[student]), step_cost.TARGET_CLASSES)[0]
        job = step_cost.task(spec, 1)
        live = state.initial_state(build_student(spec), step_cost.CLASSES, job.settings, 0)
        job = replace(job, steps=settings.warm + settings.rounds * settings.steps)
        batch, seconds = job.settings.batch_labeled + job.settings.batch_unlabeled, []
        with step_batches(job, 0) as ready:
            ours, bare = own_step(live, job, ready), bare_step(spec, job.settings.precision)
            for step in range(settings.warm):
                ours(step)
                bare(step)
            for index in range(settings.rounds):
                first = settings.warm + index * settings.steps
                seconds.append([timed(step, first, settings.steps) for step in (ours, bare)])
        yield {"student": student, "batch": batch, "steps": settings.steps, "seconds": seconds}


def own_step(live: state.State, job: batches.Task, ready: Iterator[batches.StepBatch]) -> Callable[[int], Tensor]:
    """A step of edgedistill on the next batch that is ready; returns its losses, which nobody has waited for."""
    loss = job.loss()
    return lambda number: loop.train_step(live, loss, job, number, step_batch=next(ready)).values_T


def bare_step(spec: StudentSpec, precision: Any) -> Callable[[int], Tensor]:
    """A step of a plain loop in the manner of timm's script: forward, cross-entropy, backward, AdamW; no input."""
    import torch

    device = default_device()
    model = build_student(spec).to(memory_format=torch.channels_last).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(64, 3, spec.input_px, spec.input_px).to(device, memory_format=torch.channels_last)
    labels = (torch.arange(64) % step_cost.TARGET_CLASSES).to(device)

    def step(number: int) -> Tensor:
        with autocast(device, precision):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def timed(step: Callable[[int], Tensor], first: int, count: int) -> float:
    """Seconds of `count` steps, until the GPU is done: the last losses are read, as every few are in `fit`."""
    started = time.perf_counter()
    for number in range(first, first + count):
        losses = step(number)
    losses.tolist()
    return round(time.perf_counter() - started, 5)


def torchdistill(setting: Setting, settings: Settings) -> Iterator[Line]:
    """Epochs of edgedistill and of torchdistill in turns, both in float32; in a rehearsal without the measurement."""
    if find_spec("torchdistill") is None:
        yield {"peer": "torchdistill", "missing": "not installed here"}
        return
    from benchmarks.peer_torchdistill import timing

    yield {"peer": "torchdistill", **({} if settings.rehearsal else timing.measure(setting))}


def suite(settings: Settings) -> Iterator[Line]:
    """Run the suite for the time that is left; its lines go to its own file, and it goes on where it was stopped."""
    from benchmarks.suite.__main__ import arguments, check_options

    profile = "deploy"
    argv = ["run", "--packs", str(settings.packs), "--profile", profile, "--runs", str(settings.runs / "bank")]
    argv += ["--processes", "1"]
    if np.isfinite(settings.end):
        argv += ["--minutes", f"{max(0.1, settings.minutes_left - 2):.1f}"]
    # in a rehearsal the command alone is checked: a cell takes minutes without a GPU
    check_options(protocol.load(profile), arguments(argv).methods or (), arguments(argv).seeds)
    if settings.rehearsal:
        yield {"profile": profile, "command": argv}
        return
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "benchmarks.suite", *argv], cwd=ROOT, check=False).returncode
    yield {"profile": profile, "exit_code": code, "seconds": round(time.monotonic() - started, 1)}
    if code:
        raise EdgeDistillError("the suite failed", "see above")


def runtimes(names: Sequence[str], settings: Settings) -> Iterator[Line]:
    """Latency of fp32, fp16 and int8 graphs of one student on each runtime that is here, by the agent."""
    from edgedistill.agent import backends
    from edgedistill.devices import bench, bundle

    available = backends.available()
    missing = [name for name in names if available[name].startswith("not here")]
    for name in missing:
        yield {"backend": name, "missing": available[name][:300]}
    if len(missing) == len(names):
        return  # an export takes a part of a minute
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        spec, images_NHWC, models = student_graphs(folder, settings.rehearsal)
        bundle.write_bundle(
            folder / "bundle",
            models,
            {"classes": [f"class {index}" for index in range(spec.num_classes)], "fit": "squash"}
            | {"input_px": spec.input_px, "store_px": spec.input_px},
            images_NHWC=images_NHWC,
            labels_N=np.full(len(images_NHWC), -1),
            host_predictions={},
        )
        times = Bench(processes=1, rounds=3, samples=30, seconds=0.05) if settings.rehearsal else Bench()
        for name in [name for name in names if name not in missing]:
            fitting = bundle.fitting(name, (model for _, model in models))
            for report in bench.bench(
                folder / "bundle", Device(name="local"), name, settings=times, models=fitting, out=folder / "out"
            ):
                energy = report.energy
                yield {
                    "backend": name,
                    "version": report.backend_version,
                    "graph": report.artefact,
                    "mode": report.mode,
                    "window": report.latency.window,
                    "samples_ms": [round(sample_ms, 4) for sample_ms in report.latency.samples_ms],
                    "percentiles": percentiles(report.latency.samples_ms) if report.latency.samples_ms else {},
                    "verdict": report.verdict,
                    "energy": None if energy is None else vars(energy),
                    "warnings": list(report.warnings),
                }


def student_graphs(folder: Path, small: bool) -> tuple[StudentSpec, np.ndarray, list[tuple[Path, OnnxModel]]]:
    """An untrained student's graphs: fp32, fp16 where it can be, and int8 for the CPU and for TensorRT."""
    import onnx

    from edgedistill.export import onnx as exporter
    from edgedistill.export import quantize

    families = STUDENTS["micro at 64 px" if small else "efficientnet_lite at 224 px"]
    spec = space.candidates(Student(families=families), step_cost.TARGET_CLASSES)[0]
    images_NHWC = np.random.default_rng(0).integers(0, 256, (32, spec.input_px, spec.input_px, 3), dtype=np.uint8)
    fp32 = exporter.export(
        build_student(spec).eval(), spec, path=folder / "student.fp32.onnx", images_NHWC=images_NHWC, settings=Export()
    )
    records = [fp32, exporter.half(folder / "student.fp32.onnx", fp32, images_NHWC)]
    model = onnx.load(folder / "student.fp32.onnx")
    ranges = quantize.choose_ranges(model, images_NHWC, Quantize(method="minmax")).ranges
    for target in ("cpu", "tensorrt"):
        graph = quantize.graph_maker(model, ranges, target)(())
        records.append(quantize.write(graph, fp32, target, folder))
    return spec, images_NHWC, [(folder / record.path, record) for record in records if record]


def sources(models: Sequence[tuple[str, int]], settings: Settings) -> Iterator[Line]:
    """Seconds that each source takes for some images in each round."""
    for model, px in models:
        yield scale.time_inference(model, px)


def pieces(rehearsal: bool) -> list[Piece]:
    """All pieces, in the order in which they are worth their minutes; those of a rehearsal are small."""
    students = {"micro at 64 px": STUDENTS["micro at 64 px"]} if rehearsal else STUDENTS
    graphs = ("onnxruntime-cpu", *RUNTIMES) if rehearsal else RUNTIMES
    models = (("mobilenetv2_035", 32),) if rehearsal else scale.SOURCES
    training_pieces = [
        Piece(name=f"training, {name}", measure=partial(training, {name: families}))
        for name, families in students.items()
    ]
    runtime_pieces = [
        Piece(name=f"runtime, {name}", measure=partial(runtimes, (name,)), least_minutes=1.5) for name in graphs
    ]
    source_pieces = [
        Piece(name=f"source, {model} at {px} px", measure=partial(sources, ((model, px),))) for model, px in models
    ]
    return [
        Piece(name="tier gpu", measure=tier, least_minutes=1.0),
        *training_pieces,
        *(
            Piece(name=f"torchdistill, {setting.family}", measure=partial(torchdistill, setting), least_minutes=1.0)
            for setting in SETTINGS
        ),
        Piece(name="suite", measure=suite, least_minutes=3.0),
        *runtime_pieces,
        *source_pieces,
    ]
