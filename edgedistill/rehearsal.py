"""What a candidate takes on the device, measured before it is trained: latency does not depend on what weights say.

An untrained candidate goes the way that the student will go: ONNX, int8 where that is asked for, bundle, agent, device.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill import environment, run
from edgedistill.devices import inventory
from edgedistill.progress import say
from edgedistill.records import OnnxModel, StudentSpec

if TYPE_CHECKING:
    from edgedistill.context import Context

IMAGES = 8  # what latency is measured with and ranges are calibrated on; accuracy is not at stake
MAKERS = ("torch", "timm", "onnx", "onnxruntime")  # whose versions decide what graph a candidate becomes


def latency_ms(context: Context, spec: StudentSpec) -> float:
    """The candidate's latency in milliseconds: backend, precision and percentile are those of the recipe's budget.

    It is measured once for each graph, device, backend and precision, and kept beside the runs.

    Raises:
        InputError: the inventory has no such device.
        EdgeDistillError: the device cannot be reached, or the agent failed there.
    """
    import numpy as np

    bound = context.recipe.student.budget.latency_ms
    assert bound is not None, "there is a bound to measure for"
    graphs, measured = context.run.cache / "latency/graphs", context.run.cache / "latency/measured"
    known = graphs / f"{architecture(spec, bound.precision)}.json"
    place = {"device": _device_facts(context, bound.device), "backend": bound.backend, "precision": bound.precision,
             "bench": _settings(context).model_dump(mode="json")}  # fmt: skip
    if known.is_file():
        found = measured / f"{run.digest([run.read_json(known)['sha256'], place])[:32]}.json"
        if found.is_file():
            return float(np.percentile(run.read_json(found)["samples_ms"], bound.percentile))
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        path, model = graph(context, spec, Path(folder))
        samples_ms = _measured(context, spec, path, model)
    run.write_json(known, {"sha256": model.sha256, "candidate": asdict(spec)})
    found = measured / f"{run.digest([model.sha256, place])[:32]}.json"
    run.write_json(found, {"sha256": model.sha256, **place, "samples_ms": samples_ms})
    return float(np.percentile(samples_ms, bound.percentile))


def architecture(spec: StudentSpec, precision: str) -> str:
    """What names a candidate's graph before there is one: the candidate, and the versions of what makes graphs."""
    made_by = {name: metadata.version(name) for name in MAKERS}
    return run.digest([spec.family, spec.options, spec.input_px, spec.num_classes, precision, made_by])[:32]


def graph(context: Context, spec: StudentSpec, folder: Path) -> tuple[Path, OnnxModel]:
    """The untrained candidate as the graph that would be deployed, in the precision of the budget."""
    from edgedistill.export import onnx, quantize
    from edgedistill.training import student

    bound, images_NHWC = context.recipe.student.budget.latency_ms, context.calibration_images(spec.input_px)[:IMAGES]
    assert bound is not None, "there is a precision to measure in"
    path = folder / "student.fp32.onnx"
    # untrained nets answer with nearly equal logits, so whose label wins is no measure of parity here
    loose = context.recipe.export.model_copy(update={"min_agreement": 0.0})
    fp32 = onnx.export(student.build(spec), spec, path, images_NHWC, loose)
    if bound.precision == "fp32":
        return path, fp32
    target = "cpu" if bound.backend.startswith("onnxruntime") else "tensorrt"
    few = context.recipe.quantize.model_copy(
        update={"targets": (target,), "calibration_images": len(images_NHWC), "method": "minmax"}
    )
    [int8] = quantize.quantize(path, fp32, images_NHWC, few, folder)
    return folder / int8.path, int8


def _measured(context: Context, spec: StudentSpec, path: Path, model: OnnxModel) -> list[float]:
    """Every sample that the agent took on the device, in milliseconds."""
    import numpy as np

    from edgedistill.devices import bench, bundle
    from edgedistill.training.student import describe

    bound = context.recipe.student.budget.latency_ms
    assert bound is not None, "there is a device to measure on"
    images_NHWC = np.asarray(context.calibration_images(spec.input_px)[:IMAGES])
    device = inventory.find(inventory.load(context.inventory), bound.device)
    described = {"classes": list(context.splits.classes), "input_px": spec.input_px,
                 "store_px": context.splits.train.px, "fit": context.recipe.data.fit}  # fmt: skip
    shipped = path.parent / "bundle"
    no_labels_N = np.zeros(len(images_NHWC), dtype=np.int64)  # nobody asks an untrained net how often it is right
    bundle.write_bundle(shipped, [(path, model)], described, images_NHWC, no_labels_N, {})
    say(f"  measuring {describe(spec)} in {bound.precision} on {bound.device}")
    [report] = bench.bench(shipped, device, bound.backend, _settings(context), [model], path.parent / "bench")
    return list(report.latency.samples_ms)


def _settings(context: Context) -> Any:
    """How long to measure: as the recipe says, on the few images there are."""
    return context.recipe.bench.model_copy(update={"accuracy_images": IMAGES, "devices": (), "backends": ()})


def _device_facts(context: Context, name: str) -> list[Any]:
    """A device's own facts belong to the key: the same name may come to mean another machine."""
    device = inventory.find(inventory.load(context.inventory), name)
    return [asdict(device), environment.machine() if device.transport == "local" else []]
