"""torch -> ONNX, with the preprocessing inside the graph, and the gate that compares the graph with torch.

N images, B batch, H x W pixels, C target classes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

from edgedistill.console import bar
from edgedistill.errors import EdgeDistillError, GateError
from edgedistill.export import float16, graphs
from edgedistill.export.infer import BATCH, check_images, predict_onnx, relative_error
from edgedistill.recipe.schema import Export
from edgedistill.records import OnnxModel, StudentSpec
from edgedistill.students.build import require_finite_weights

log = logging.getLogger(__name__)

MIN_HALF_AGREEMENT = 0.95  # with fp32's labels: float16 rounding changes close calls; an overflow changes nearly all
EXPORTER_MIN_OPSET = 18  # torch.onnx.export(dynamo=True) silently uses this one for anything lower


class Preprocessed(torch.nn.Module):
    """A student with its normalization in front: uint8 [B, H, W, 3] -> logits [B, C]."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: torch.nn.Module, spec: StudentSpec) -> None:
        super().__init__()
        self.model, self.px = model, spec.input_px
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
        self.register_buffer("scale", (1.0 / (255.0 * std)).float().repeat(spec.input_px))
        self.register_buffer("shift", (-mean / std).float().repeat(spec.input_px))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize the images and compute the student's logits."""
        # the cast comes first because TensorRT refuses to transpose uint8. Rows are normalized at once, because ONNX
        # Runtime processes the three channels of a pixel one at a time, a large part of a small net's latency
        rows = images.float().reshape(-1, self.px, self.px * 3) * self.scale + self.shift
        logits: torch.Tensor = self.model(rows.reshape(-1, self.px, self.px, 3).permute(0, 3, 1, 2))
        return logits


class _GlobalMean(torch.nn.Module):
    """Global average pooling that exports as one ReduceMean."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean((-2, -1), keepdim=True)


def export(
    model: torch.nn.Module, spec: StudentSpec, path: Path, images_NHWC: np.ndarray, settings: Export
) -> OnnxModel:
    """Write a student as ONNX and compare it with torch on real images.

    Args:
        model: normalized float32 [B, 3, px, px] -> logits [B, C]; it is copied, not changed.
        spec: its input size and normalization are used.
        path: the file to write; weights inline, the same bytes for the same weights.
        images_NHWC: uint8 [N, px, px, 3], N >= 1, for the parity gate.
        settings: opset and the bounds of the gate. None leaves the opset to the exporter; 17 is for TensorRT 8.5
            (JetPack 5).

    Returns:
        The record; `path` is the bare file name, `parent_sha256` is empty (the caller sets it), and `parity` is
        {"agreement": fraction, "relative_error": max |torch - ONNX| / max |torch|, "n": images}.

    Raises:
        InputError: `images_NHWC` does not have the type or shape of the student's input.
        GateError: parity is outside the bounds; the file is written.
        EdgeDistillError: the student has weights that are not finite, or cannot be exported in the requested opset.
    """
    check_images(images_NHWC, spec.input_px)
    require_finite_weights(model)
    with bar("export to ONNX", 3) as advance:
        student = prepare_student(model, spec)
        advance(1)
        exported = graphs.global_average_pool(graphs.tidy(_convert(student, spec, settings.opset)))
        graph = lower_opset(exported, settings.opset)
        opset = check_opset(graph, settings.opset)
        advance(1)
        graphs.write(graph, path)
        parity = check_parity(student, path, images_NHWC, settings)
        advance(1)
    return graphs.record(path, "fp32", "any", opset=opset, parity=parity)


def half(fp32: Path, parent: OnnxModel, images_NHWC: np.ndarray) -> OnnxModel | None:
    """Write the float16 graph for TensorRT beside an fp32 one.

    Returns:
        The record, with `path` the bare file name; None, with a warning, if float16 cannot represent the student's
        values: its labels on the images, uint8 [N, px, px, 3], differ from fp32's.
    """
    path, model = fp32.with_name("student.fp16.onnx"), onnx.load(fp32)
    graphs.write(float16.half(model, float16.large_tensors(model, images_NHWC)), path)
    fp32_NC, fp16_NC = predict_onnx(fp32, images_NHWC), predict_onnx(path, images_NHWC, simulate=True)
    if not np.isfinite(fp16_NC).all() or float((fp32_NC.argmax(1) == fp16_NC.argmax(1)).mean()) < MIN_HALF_AGREEMENT:
        path.unlink()
        log.warning("export: float16 cannot represent this student's values; there is no fp16 graph")
        return None
    return graphs.record(path, "fp16", "tensorrt", opset=parent.opset, parent_sha256=parent.sha256)


def prepare_student(model: torch.nn.Module, spec: StudentSpec) -> Preprocessed:
    """Copy a student to the CPU in eval mode for export, with its branches merged (MobileOne, RepVGG)."""
    from timm.utils import reparameterize_model

    merged = reparameterize_model(copy.deepcopy(model).cpu().float().eval())
    for name, module in list(merged.named_modules()):
        # torch.export decomposes in-place activations into primitives, which doubles its time
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False
        # and turns adaptive pooling to 1 x 1 into a mean and a Gather over computed indices
        if isinstance(module, torch.nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            merged.set_submodule(name, _GlobalMean())
    return Preprocessed(merged, spec).eval()


def _convert(student: Preprocessed, spec: StudentSpec, opset: int | None) -> onnx.ModelProto:
    # two images, because torch.export treats a batch size of one as a constant
    example = torch.zeros(2, spec.input_px, spec.input_px, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # torch's exporter calls parts of torch that torch has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        # timm's attention caches its biases in eval mode
        warnings.filterwarnings("ignore", message="The tensor attribute .* was assigned during export")
        try:
            program = torch.onnx.export(
                student,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset if opset is None else max(opset, EXPORTER_MIN_OPSET),
                dynamic_shapes={"images": {0: "batch"}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = " ".join(str(error).partition("Exception summary")[2].split()).strip("# ")[:300]
            problem = (
                f"export: torch cannot export this student at {spec.input_px} px ({reason or type(error).__name__})"
            )
            raise EdgeDistillError(problem, "choose another input_px or another family") from None
    assert program is not None  # None only with dynamo=False
    return program.model_proto


def lower_opset(graph: onnx.ModelProto, opset: int | None) -> onnx.ModelProto:
    """Convert a graph to an opset older than the exporter's oldest, and its IR version; TensorRT 8.5 reads opset 17.

    torch's TorchScript exporter, the alternative, exports timm's TensorFlow-style padding as about two hundred nodes of
    shape arithmetic, and is deprecated.

    Raises:
        EdgeDistillError: the opset cannot express the graph.
    """
    if opset is None or opset >= EXPORTER_MIN_OPSET:
        return graph
    try:
        lowered = onnx.version_converter.convert_version(graph, opset)
        graphs.drop_later_attributes(lowered, graphs.opset(graph))
        onnx.checker.check_model(lowered, full_check=True)
    except Exception as error:  # the converter's errors share no base class
        reason = " ".join(str(error).split())
        problem = f"export.opset: {opset} cannot express this student ({reason})"
        raise EdgeDistillError(problem, "leave it out, or choose another family") from None
    lowered.ir_version = onnx.helper.find_min_ir_version_for(lowered.opset_import)
    return lowered


def check_opset(graph: onnx.ModelProto, requested: int | None) -> int:
    """The opset of an exported graph, which torch.onnx.export does not guarantee to be the requested one.

    Raises:
        EdgeDistillError: it is not the requested one.
    """
    actual = graphs.opset(graph)
    if requested is not None and actual != requested:
        raise EdgeDistillError(
            f"export.opset: asked for {requested}, the exporter gave {actual}", f"set it to {actual}"
        )
    return actual


def check_parity(student: Preprocessed, path: Path, images_NHWC: np.ndarray, settings: Export) -> dict[str, float]:
    """Compare the logits of a graph with torch's: agreement, relative error and the number of images.

    Raises:
        GateError: one of the first two is outside the bounds.
    """
    torch_NC, onnx_NC = _predict_torch(student, images_NHWC), predict_onnx(path, images_NHWC)
    agreement, error = float((torch_NC.argmax(1) == onnx_NC.argmax(1)).mean()), relative_error(torch_NC, onnx_NC)
    if agreement >= settings.min_agreement and error <= settings.max_relative_error:
        return {"agreement": agreement, "relative_error": error, "n": float(len(torch_NC))}
    problem = (
        f"{path.name}: ONNX is not torch over {len(torch_NC)} images: agreement {agreement:.4f} (at least "
        f"{settings.min_agreement:g}), relative error {error:.2e} (at most {settings.max_relative_error:g}); "
        f"{_worst(torch_NC, onnx_NC)}"
    )
    raise GateError(problem, loosened(agreement, error, settings))


def loosened(agreement: float, error: float, settings: Export) -> str:
    """The fix of a failed gate: the bounds that the values are within; values that are not finite are within none."""
    if not np.isfinite(error):
        return "its values are too large for float32: train it again with a smaller distill.lr"
    # rounded away from the value: a bound that is copied from here holds
    bounds = []
    if agreement < settings.min_agreement:
        bounds.append(f"export.min_agreement to {np.floor(1e4 * agreement) / 1e4:g}")
    if error > settings.max_relative_error:
        bounds.append(f"export.max_relative_error to {float(f'{1.1 * error:.1e}'):g}")
    return f"if the two values are close enough for you, loosen the bound: set {' and '.join(bounds)}"


def _worst(torch_NC: np.ndarray, onnx_NC: np.ndarray) -> str:
    distance_NC = np.nan_to_num(np.abs(torch_NC - onnx_NC), nan=np.inf)
    image, label = np.unravel_index(distance_NC.argmax(), distance_NC.shape)
    values = f"{torch_NC[image, label]:.6g} in torch, {onnx_NC[image, label]:.6g} in ONNX"
    return f"worst is image {image}, class {label}: {values}"


@torch.inference_mode()
def _predict_torch(student: Preprocessed, images_NHWC: np.ndarray) -> np.ndarray:
    batches = [np.array(images_NHWC[start : start + BATCH]) for start in range(0, len(images_NHWC), BATCH)]
    return np.concatenate([student(torch.from_numpy(batch)).numpy() for batch in batches])
