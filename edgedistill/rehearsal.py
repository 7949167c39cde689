"""What a candidate takes and what it is worth, before anything is trained in full.

Latency does not depend on what the weights say, so it is measured first: an untrained candidate goes the way that the
student will go: ONNX, int8 where that is asked for, bundle, agent, device. Worth is the accuracy on val after a short
distillation, of the student or of its int8 graph.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock

from edgedistill import crew, keep, run
from edgedistill.agent import backends
from edgedistill.agent.job import AgentError
from edgedistill.agent.metrics import Z95
from edgedistill.devices import inventory
from edgedistill.devices.bundle import target_of
from edgedistill.progress import bar, say
from edgedistill.recipe import Bench
from edgedistill.records import (
    HOST_TO_HOST,
    Accuracy,
    BenchReport,
    OnnxModel,
    Precision,
    StudentSpec,
    Target,
    UnfitError,
)

if TYPE_CHECKING:
    from torch import nn

    from edgedistill.context import Context
    from edgedistill.training.search import Rungs

SEARCH = 2  # raised when training/search.py would choose another way: the step's version, and workers must share it
HELD_OUT = 256  # unlabeled images that the search does not train on
CALIBRATION = 64  # images that a candidate's int8 graph is calibrated on where its accuracy counts
IMAGES = 8  # what latency is measured with and ranges are calibrated on; accuracy is not at stake
MAKERS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")  # whose versions decide what graph a candidate becomes


def identity(context: Context) -> str:
    """Hash of what makes two workers' trials comparable: all that a search reads, however it is called there."""
    recipe = context.recipe
    # sources by their weights: where they lie differs from one machine to the next
    sources = [one["sha256"] for one in run.read_json(context.run / "weigh/sources.json").values()]
    facts = run.read_json(context.run / "data.json")
    data = {name: facts[name] for name in ("data_hash", "test_hash", "shards_hash") if name in facts}
    read = recipe.sections(("seed", "data", "weigh", "student", "search", "distill"))
    versions = {name: metadata.version(name) for name in ("edgedistill", *MAKERS)}
    order = recipe.unlabeled.mixed if recipe.unlabeled else None
    return run.digest([read, sources, data, versions, deployment(context), SEARCH, order])


def deployment(context: Context) -> dict[str, str]:
    """What a search depends on besides training, where candidates are timed or scored as int8 graphs; else nothing."""
    recipe, bound = context.recipe, context.recipe.student.budget.latency_ms
    found = {"timed on": run.digest([context.device_facts(bound.device), _settings(context)])} if bound else {}
    if bound or recipe.search.objective == "int8":
        method = recipe.quantize.method if recipe.search.objective == "int8" else None
        found["exported by"] = run.digest([_exported(context), recipe.quantize.calibration_images, method])
    return found


def _exported(context: Context) -> dict[str, Any]:
    """The settings of export that a candidate's graph depends on."""
    return context.recipe.export.model_dump(mode="json", exclude={"fp16", "engines"})


def score(context: Context, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
    """Distil the candidate for `search.steps` steps; its accuracy on val by `search.objective`, and facts beside it.

    Args:
        context: the run.
        spec: the candidate.
        seed: of its training.
        rungs: step -> what is called with the score on val after it. It is the student's own there, in whatever
            precision the end is scored: a graph a rung would cost more than it tells.
    """
    from edgedistill.training import student

    recipe = context.recipe
    with bar(f"try {student.describe(spec)}", recipe.search.steps) as shown:
        judged = {step: partial(_judge, recipe.data.score, judge) for step, judge in rungs.items()}
        fitted = crew.distil(
            context, spec, recipe.search.steps, seed, held_out=HELD_OUT, on_step=lambda *step: shown(1), rungs=judged
        )
    val = fitted.val if recipe.search.objective == "fp32" else int8_accuracy(context, fitted.model, spec)
    low, high = val.interval(recipe.data.score)
    facts = {"standard_error": (high - low) / 2 / Z95, "loss": fitted.loss, "seconds": round(fitted.seconds, 2)}
    return val.score(recipe.data.score), facts


def _judge(by: Literal["top1", "balanced"], judge: Callable[[float], object], val: Accuracy) -> None:
    judge(val.score(by))


def int8_accuracy(context: Context, model: nn.Module, spec: StudentSpec) -> Accuracy:
    """Accuracy on val of the student's int8 graph for a CPU."""
    from edgedistill.export.infer import predict_onnx
    from edgedistill.training import fit

    splits = context.splits
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        path, _ = graph(
            context, spec, folder=Path(folder), precision="int8", target="cpu", model=model, images=CALIBRATION
        )
        logits_NC = predict_onnx(path, np.asarray(splits.train.at(spec.input_px)[splits.val_rows]))
    return fit.score(logits_NC, splits.val_labels)


def latency_ms(context: Context, spec: StudentSpec) -> float:
    """The candidate's latency in milliseconds: backend, precision and percentile are those of the recipe's budget.

    It is measured once for each graph, device, backend and precision, and kept beside the runs.

    Raises:
        InputError: the inventory has no such device.
        EdgeDistillError: the device cannot be reached, or the agent failed there.
    """
    bound = context.recipe.student.budget.latency_ms
    assert bound is not None, "there is a bound to measure for"
    cache = context.run.cache / "latency"
    target = target_of(bound.backend)
    known = cache / f"graphs/{architecture(context, spec, bound.precision, target)}.json"
    place = {
        "device": context.device_facts(bound.device),
        "backend": bound.backend,
        "precision": bound.precision,
        "bench": _settings(context),
    }

    def measured(sha256: str) -> Path:
        return cache / f"measured/{run.digest([sha256, place])[:32]}.json"

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{bound.device}.lock"):  # two at once would each slow the other down
        if not known.is_file() or not measured(run.read_json(known)["sha256"]).is_file():
            with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
                path, model = graph(context, spec, folder=Path(folder), precision=bound.precision, target=target)
                bound_to = (bound.device, bound.backend)
                [report] = _measured(
                    context,
                    spec,
                    shipped=[(path, model)],
                    where=bound_to,
                    settings=_settings(context),
                    folder=Path(folder),
                )
                samples_ms = list(report.latency.samples_ms)
            run.write_json(known, {"sha256": model.sha256, "candidate": asdict(spec)})
            run.write_json(measured(model.sha256), {"sha256": model.sha256, **place, "samples_ms": samples_ms})
    samples_ms = run.read_json(measured(run.read_json(known)["sha256"]))["samples_ms"]
    return float(np.percentile(samples_ms, bound.percentile))


def architecture(context: Context, spec: StudentSpec, precision: str, target: str) -> str:
    """What names a candidate's graph before there is one: the candidate, and all that makes graphs, with versions."""
    made_by = {name: metadata.version(name) for name in ("edgedistill", *MAKERS)}
    how = _exported(context)
    candidate = [spec.family, spec.options, spec.input_px, spec.num_classes]
    return run.digest([candidate, precision, target, how, made_by])[:32]


def graph(
    context: Context,
    spec: StudentSpec,
    folder: Path,
    precision: Precision,
    target: Target,
    model: nn.Module | None = None,
    images: int = IMAGES,
) -> tuple[Path, OnnxModel]:
    """The candidate (untrained unless a `model` is given) as the graph that would be deployed on that target.

    Raises:
        UnfitError: it cannot be exported or quantized as the recipe says.
    """
    from edgedistill.export import onnx, quantize
    from edgedistill.training import student

    images_NHWC = context.calibration_images(spec.input_px)[:images]
    path = folder / "student.fp32.onnx"
    # nets that learned little answer with nearly equal logits, so whose label wins is no measure of parity here
    loose = context.recipe.export.model_copy(update={"min_agreement": 0.0})
    # what an untrained net's ranges are changes no latency, so the simplest rule will do
    method = "minmax" if model is None else context.recipe.quantize.method
    few = context.recipe.quantize.model_copy(
        update={"targets": (target,), "calibration_images": len(images_NHWC), "method": method}
    )
    try:
        fp32 = onnx.export(
            model or student.build(spec), spec, path=path, images_NHWC=images_NHWC[:IMAGES], settings=loose
        )
        if precision == "fp32":
            return path, fp32
        [int8] = quantize.quantize(path, fp32, images_NHWC=images_NHWC, settings=few, folder=folder)
    except OSError:
        raise
    except Exception as error:  # torch.export's errors share no base class; one net that cannot be exported is no end
        raise UnfitError(f"{student.describe(spec)}: {' '.join(str(error).split())[:300]}") from error
    return folder / int8.path, int8


def runtimes() -> dict[str, str]:
    """The backends that decide what a target keeps and that run on this machine, with their versions."""
    found = {}
    for backend in keep.BACKENDS.values():
        with contextlib.suppress(AgentError):
            found[backend] = str(backends.create(backend).facts()["version"])
    return found


def ratio(context: Context, models: Sequence[OnnxModel], backend: str) -> tuple[float, float, float] | None:
    """The first graph's time over the second's, timed in turn on this machine: (middle, low, high), 95 %."""
    spec = context.checkpoint.spec
    paths = [(context.run / one.path, one) for one in models]
    settings = {**_settings(context), "processes": 3, "rounds": 5, "samples": 150, "seconds": 0.5}
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        reports = _measured(
            context, spec, shipped=paths, where=("local", backend), settings=settings, folder=Path(folder)
        )
    return keep.ratio(*reports)


def _measured(
    context: Context,
    spec: StudentSpec,
    shipped: Sequence[tuple[Path, OnnxModel]],
    where: tuple[str, str],
    settings: Mapping[str, Any],
    folder: Path,
) -> list[BenchReport]:
    """What the agent says of the graphs on a device and a backend, measured in turn."""
    from edgedistill.devices import bench, bundle
    from edgedistill.training.student import describe

    images_NHWC = np.asarray(context.calibration_images(spec.input_px)[:IMAGES])
    device = inventory.find(inventory.load(context.inventory), where[0])
    described = {
        "classes": list(context.splits.classes),
        "input_px": spec.input_px,
        "store_px": context.splits.train.px,
        "fit": context.recipe.data.fit,
    }
    no_labels_N = np.zeros(len(images_NHWC), dtype=np.int64)  # nobody asks here how often they are right
    bundle.write_bundle(
        folder / "bundle",
        shipped,
        description=described,
        images_NHWC=images_NHWC,
        labels_N=no_labels_N,
        host_predictions={},
    )
    models = [model for _, model in shipped]
    say(f"  measuring {describe(spec)} in {' and '.join(one.precision for one in models)} on {where[0]}")
    return bench.bench(
        folder / "bundle",
        device,
        backend=where[1],
        settings=Bench.model_validate(settings),
        models=models,
        out=folder / "bench",
    )


def _settings(context: Context) -> dict[str, Any]:
    """How long to measure: as the recipe says, on the few images there are."""
    whole = context.recipe.bench.model_dump(mode="json", exclude={"devices", "backends", "inventory", "offline"})
    return {**whole, "accuracy_images": IMAGES, "modes": [HOST_TO_HOST]}
