"""An imported classifier with the product's ends: uint8 [B, H, W, 3] in, logits [B, C] out, preprocessing inside.

B batch, C classes, N images, H x W pixels.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from scipy.special import log_softmax, softmax

from edgedistill.agent import metrics
from edgedistill.errors import EdgeDistillError, GateError, InputError
from edgedistill.export import graphs
from edgedistill.export.infer import predict_onnx, relative_error
from edgedistill.imported import graph
from edgedistill.imported.graph import Imported, Size
from edgedistill.recipe.section import Section
from edgedistill.students.pretrained import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]
# ends of names that graphs in int8 and float16 give to tensors of their own
RESERVED_ENDINGS = ("_scale", "_zero_point", "_stored", "_q", "_dq", "_half", "_float")
BOUNDS = (1.0, 1e-3)  # least agreement and greatest relative error, as of a student's fp32 graph with torch
HALF_BOUNDS = (0.9, 0.05)  # of a float16 file, which rounds its input as well


class Preprocessing(Section):
    """How a picture becomes the input of a classifier: (value / 255 * range - mean) / std, for each channel."""

    mean: Triple = IMAGENET_MEAN
    """Of the channels in the model's order, subtracted; by default ImageNet's."""
    std: Triple = IMAGENET_STD
    """Of the channels, divided by; by default ImageNet's."""
    range: Literal[1, 255] = 1
    """The largest value before `mean` is subtracted: 1 or 255."""
    channels: Literal["RGB", "BGR"] = "RGB"
    """Order of the model's channels."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop` cuts out the center in the ratio of the input, `squash` keeps the whole picture; then it is resized."""

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of a pixel's three values, float64."""
        mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        if not (std > 0).all():
            raise InputError(f"std: {list(self.std)} is not above 0", "state three positive numbers")
        return self.range / (255.0 * std), -mean / std

    def apply(self, images_NHWC: np.ndarray) -> np.ndarray:
        """The model's own input for images, float32 [N, H, W, 3]."""
        scale, shift = self.arrays()
        ordered = images_NHWC if self.channels == "RGB" else images_NHWC[..., ::-1]
        normalized: np.ndarray = (ordered * scale + shift).astype(np.float32)
        return normalized


def adopt(
    file: Path, preprocessing: Preprocessing, output: str | None = None, px: int | Size | None = None
) -> tuple[Imported, ModelProto]:
    """Read a classifier, and give it the product's ends: `graph.read` and `as_student`.

    Raises:
        InputError: it is refused, or its graph is broken in a way that onnx does not name.
    """
    try:
        imported = graph.read(file, output, px)
        return imported, as_student(imported, preprocessing)
    except (EdgeDistillError, OSError):
        raise
    except Exception as error:  # of a broken graph onnx raises whatever it meets
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{file}: its graph is broken ({reason})", "export it again") from None


def as_student(imported: Imported, preprocessing: Preprocessing) -> ModelProto:
    """The graph of a classifier with the product's ends.

    Raises:
        InputError: `std` is not positive.
    """
    model = copy.deepcopy(imported.model)
    _rename(model)
    first, scores = own_name(imported.input), own_name(imported.output)
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if fixed:
        _free_batch(model, fixed)
    nodes = list(model.graph.node)
    producer = graphs.producers(model)[scores]
    for node in nodes:
        node.input[:] = ["logits" if name == scores else name for name in node.input]
    producer.output[:] = ["logits" if name == scores else name for name in producer.output]
    before = _preprocessing(model, first, imported, preprocessing)
    del model.graph.node[:], model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.node.extend([*before, *nodes])
    shape = ["batch", *imported.size, 3]
    model.graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None]))
    _drop_unused(model)
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    student = graphs.global_average_pool(graphs.without_unread(model))
    classes = _classes(student)
    student.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]))
    return student


def own_name(name: str) -> str:
    """The name of a tensor of the imported graph; those that the product gives are left to it."""
    return f"own_{name}" if name == "logits" or name.startswith("images") or name.endswith(RESERVED_ENDINGS) else name


def _rename(model: ModelProto) -> None:
    """Give the imported graph's tensors, in place, names that the product's ends do not have."""
    for node in model.graph.node:
        node.input[:] = [own_name(name) for name in node.input]
        node.output[:] = [own_name(name) for name in node.output]
        node.name = own_name(node.name)
    for entry in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        entry.name = own_name(entry.name)


def _classes(model: ModelProto) -> int:
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    return int(inferred[1].dim_value) or len(
        predict_onnx(
            model.SerializeToString(),
            np.zeros((1, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])), np.uint8),
        )[0]
    )


def _free_batch(model: ModelProto, fixed: int) -> None:
    """Let reshapes to a fixed batch keep whatever batch comes, in place; the gate shows whether that was all."""
    constants, shapes = graphs.constants(model), set[str]()
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shapes.add(node.input[1])
    for tensor in model.graph.initializer:
        sizes = constants[tensor.name].ravel().tolist() if tensor.name in shapes else []
        if sizes and sizes[0] == fixed:
            sizes[0] = 0 if -1 in sizes[1:] else -1
            tensor.CopyFrom(numpy_helper.from_array(np.array(sizes, np.int64), tensor.name))


def _preprocessing(
    model: ModelProto, last: str, imported: Imported, preprocessing: Preprocessing
) -> list[onnx.NodeProto]:
    """The nodes from the bytes to the model's own input, and their constants, which are added to the graph."""
    (height, width), backwards = imported.size, preprocessing.channels == "BGR"
    # the channels are put into the model's order after they are normalized
    scale, shift = (array[::-1] if backwards else array for array in preprocessing.arrays())
    constants = {
        "images_rows": np.array([-1, height, width * 3]),
        "images_scale": np.tile(scale, width).astype(np.float32),
        "images_shift": np.tile(shift, width).astype(np.float32),
        "images_shape": np.array([-1, height, width, 3]),
        "images_order": np.array([2, 1, 0]),
    }
    # the cast comes first because TensorRT refuses to transpose uint8; rows are normalized at once (export/onnx.py)
    steps: list[tuple[str, list[str], dict[str, object]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    if not imported.uint8:
        steps += [("Reshape", ["images_rows"], {}), ("Mul", ["images_scale"], {}), ("Add", ["images_shift"], {})]
        steps += [("Reshape", ["images_shape"], {})]
    if backwards:
        steps += [("Gather", ["images_order"], {"axis": 3})]
    if imported.channels_first:
        steps += [("Transpose", [], {"perm": [0, 3, 1, 2]})]
    if imported.uint8:
        steps += [("Cast", [], {"to": TensorProto.UINT8})]
    nodes, name = [], "images"
    for index, (op_type, more, attributes) in enumerate(steps):
        output = last if index == len(steps) - 1 else f"images_{index}"
        nodes.append(helper.make_node(op_type, [name, *more], [output], name=f"images_{op_type}_{index}", **attributes))
        name = output
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return nodes


def _drop_unused(model: ModelProto) -> None:
    """Remove the nodes, in place, that the logits do not depend on: a softmax at the end, other outputs."""
    needed, kept = {"logits"}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))


def check(
    imported: Imported, student: ModelProto, preprocessing: Preprocessing, images_NHWC: np.ndarray
) -> dict[str, float]:
    """Compare the student with the file as it came, whose input is computed apart: agreement and relative error.

    Raises:
        InputError: the student cannot take several images at once.
        GateError: the two answer differently.
    """
    pixels = images_NHWC[..., :: -1 if preprocessing.channels == "BGR" else 1]
    fed = pixels if imported.uint8 else preprocessing.apply(images_NHWC)
    fed = np.ascontiguousarray(fed.transpose(0, 3, 1, 2) if imported.channels_first else fed)
    expected_NC = graph.run(imported, fed)
    try:
        actual_NC = predict_onnx(student.SerializeToString(), images_NHWC)
    except EdgeDistillError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{imported.file}: takes a fixed number of images at once, which is built into it ({reason})",
            "export it with a dynamic batch",
        ) from None
    if imported.softmax:
        actual_NC = (softmax if imported.softmax == "Softmax" else log_softmax)(actual_NC, axis=1)
    agreement = metrics.agreement(expected_NC.argmax(1), actual_NC.argmax(1))
    difference = relative_error(expected_NC, actual_NC)
    least, greatest = HALF_BOUNDS if imported.half else BOUNDS
    if not (agreement >= least and difference <= greatest):
        raise GateError(
            f"{imported.file}: its graph with uint8 images answers otherwise than the file over {len(images_NHWC)} "
            f"images: agreement {agreement:.4f}, relative error {difference:.2e}",
            "if it takes a fixed batch, export it with a dynamic one",
        )
    return {"agreement": agreement, "relative_error": difference, "n": float(len(images_NHWC))}
