"""torch -> ONNX, preprocessing inside the graph, and the gate that holds the graph against torch.

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
from edgedistill.export import graphs
from edgedistill.export.infer import BATCH, check_images, predict_onnx, relative_error
from edgedistill.recipe.schema import Export
from edgedistill.records import OnnxModel, StudentSpec
from edgedistill.run.files import sha256_file

log = logging.getLogger(__name__)

LEAST_HALF = 0.95  # of fp32's labels: float16 rounds, and close calls go either way; an overflow loses nearly all
EXPORTER_MIN_OPSET = 18  # torch.onnx.export(dynamo=True) gives this one for anything lower, without a word


class _Preprocessed(torch.nn.Module):
    """A student behind its own normalization: uint8 [B, H, W, 3] -> logits [B, C]."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: torch.nn.Module, spec: StudentSpec) -> None:
        super().__init__()
        self.model, self.px = model, spec.input_px
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
        self.register_buffer("scale", (1.0 / (255.0 * std)).float().repeat(spec.input_px))
        self.register_buffer("shift", (-mean / std).float().repeat(spec.input_px))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # the cast comes first because TensorRT refuses to transpose uint8. Row by row, because ONNX Runtime takes the
        # three channels of a pixel one at a time, a large part of a small net's latency
        rows = images.float().reshape(-1, self.px, self.px * 3) * self.scale + self.shift
        logits: torch.Tensor = self.model(rows.reshape(-1, self.px, self.px, 3).permute(0, 3, 1, 2))
        return logits


class _Mean(torch.nn.Module):
    """Global average pooling that exports as one ReduceMean."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean((-2, -1), keepdim=True)


def export(
    model: torch.nn.Module, spec: StudentSpec, path: Path, images_NHWC: np.ndarray, settings: Export
) -> OnnxModel:
    """Write a student as ONNX and hold it against torch on real images.

    Args:
        model: normalised float32 [B, 3, px, px] -> logits [B, C]; it is copied, not changed.
        spec: gives input size and normalization.
        path: the file to write; weights inline, the same bytes for the same weights.
        images_NHWC: uint8 [N, px, px, 3], N >= 1, for the parity gate.
        settings: opset and the bounds of the gate. None leaves the opset to the exporter; 17 is for TensorRT 8.5
            (JetPack 5).

    Returns:
        The record; `path` is the bare file name, `parent_sha256` is left empty for the caller, and `parity` holds
        {"agreement": fraction, "relative_error": max |torch - ONNX| / max |torch|, "n": images}.

    Raises:
        InputError: `images_NHWC` has another type or shape than the student takes.
        GateError: the file is written, and parity is outside the bounds.
        EdgeDistillError: the student cannot be had in the opset asked for.
    """
    check_images(images_NHWC, spec.input_px)
    with bar("export to ONNX", 3) as shown:
        student = _ready(model, spec)
        shown(1)
        exported = graphs.global_average_pool(graphs.tidy(_convert(student, spec, settings.opset)))
        graph = _lower(exported, settings.opset)
        opset = _opset(graph, settings.opset)
        shown(1)
        graphs.write(graph, path)
        parity = _parity(student, path, images_NHWC, settings)
        shown(1)
    size_mb = path.stat().st_size / 1e6
    return OnnxModel(
        path=path.name,
        sha256=sha256_file(path),
        precision="fp32",
        target="any",
        opset=opset,
        parent_sha256="",
        size_mb=size_mb,
        parity=parity,
    )


def half(fp32: Path, parent: OnnxModel, images_NHWC: np.ndarray) -> OnnxModel | None:
    """Write the float16 graph for TensorRT beside an fp32 one; its record, `path` the bare file name.

    None, with a warning, where float16 cannot hold what the student computes: its labels on the images, uint8
    [N, px, px, 3], are not fp32's.

    Raises:
        EdgeDistillError: a weight is beyond what float16 holds.
    """
    path = fp32.with_name("student.fp16.onnx")
    graphs.write(graphs.half(onnx.load(fp32)), path)
    wanted, got = predict_onnx(fp32, images_NHWC), predict_onnx(path, images_NHWC, simulate=True)
    if not np.isfinite(got).all() or float((wanted.argmax(1) == got.argmax(1)).mean()) < LEAST_HALF:
        path.unlink()
        log.warning("export: float16 cannot hold what this student computes; there is no fp16 graph")
        return None
    size_mb = path.stat().st_size / 1e6
    return OnnxModel(
        path=path.name,
        sha256=sha256_file(path),
        precision="fp16",
        target="tensorrt",
        opset=parent.opset,
        parent_sha256=parent.sha256,
        size_mb=size_mb,
    )


def _ready(model: torch.nn.Module, spec: StudentSpec) -> _Preprocessed:
    """A copy on the CPU in eval mode, branches merged where the family has any (MobileOne, RepVGG)."""
    from timm.utils import reparameterize_model

    merged = reparameterize_model(copy.deepcopy(model).cpu().float().eval())
    for name, module in list(merged.named_modules()):
        # torch.export takes in-place activations apart one primitive at a time, which doubles its time
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False
        # and turns adaptive pooling to 1 x 1 into a mean and a Gather over computed indices
        if isinstance(module, torch.nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            merged.set_submodule(name, _Mean())
    return _Preprocessed(merged, spec).eval()


def _convert(student: _Preprocessed, spec: StudentSpec, opset: int | None) -> onnx.ModelProto:
    # two images, because torch.export takes a batch of one for a constant
    example = torch.zeros(2, spec.input_px, spec.input_px, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # torch's exporter calls parts of torch that torch has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
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
    assert program is not None  # only with dynamo=False is there none
    return program.model_proto


def _lower(graph: onnx.ModelProto, opset: int | None) -> onnx.ModelProto:
    """The graph in an opset older than the exporter knows, in the IR version of that time; TensorRT 8.5 reads 17.

    torch's own way there, the TorchScript exporter, leaves timm's TensorFlow-style padding as some two hundred nodes
    of shape arithmetic, and is on its way out.
    """
    if opset is None or opset >= EXPORTER_MIN_OPSET:
        return graph
    try:
        lowered = onnx.version_converter.convert_version(graph, opset)
    except Exception as error:  # the converter's errors share no base class
        reason = " ".join(str(error).split())
        problem = f"export.opset: {opset} cannot express this student ({reason})"
        raise EdgeDistillError(problem, "leave it out, or choose another family") from None
    lowered.ir_version = onnx.helper.find_min_ir_version_for(lowered.opset_import)
    return lowered


def _opset(graph: onnx.ModelProto, wanted: int | None) -> int:
    """The opset that came out, which torch.onnx.export does not promise to be the one asked for."""
    got = graphs.opset(graph)
    if wanted is not None and got != wanted:
        raise EdgeDistillError(f"export.opset: asked for {wanted}, the exporter gave {got}", f"set it to {got}")
    return got


def _parity(student: _Preprocessed, path: Path, images_NHWC: np.ndarray, settings: Export) -> dict[str, float]:
    wanted, got = _predict_torch(student, images_NHWC), predict_onnx(path, images_NHWC)
    agreement, error = float((wanted.argmax(1) == got.argmax(1)).mean()), relative_error(wanted, got)
    if agreement >= settings.min_agreement and error <= settings.max_relative_error:
        return {"agreement": agreement, "relative_error": error, "n": float(len(wanted))}
    raise GateError(
        f"{path.name}: ONNX is not torch over {len(wanted)} images: agreement {agreement:.4f} (at least "
        f"{settings.min_agreement:g}), relative error {error:.2e} (at most {settings.max_relative_error:g}); "
        f"{_worst(wanted, got)}",
        "try another export.opset, or loosen the bound if the two values are close enough for you",
    )


def _worst(wanted_NC: np.ndarray, got_NC: np.ndarray) -> str:
    distance_NC = np.nan_to_num(np.abs(wanted_NC - got_NC), nan=np.inf)
    image, label = np.unravel_index(distance_NC.argmax(), distance_NC.shape)
    values = f"{wanted_NC[image, label]:.6g} in torch, {got_NC[image, label]:.6g} in ONNX"
    return f"worst is image {image}, class {label}: {values}"


@torch.inference_mode()
def _predict_torch(student: _Preprocessed, images_NHWC: np.ndarray) -> np.ndarray:
    batches = [np.array(images_NHWC[at : at + BATCH]) for at in range(0, len(images_NHWC), BATCH)]
    return np.concatenate([student(torch.from_numpy(batch)).numpy() for batch in batches])
