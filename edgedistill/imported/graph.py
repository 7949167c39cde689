"""Read an ONNX file of somebody else, or refuse it by name: nothing of it is run before it is checked.

B batch, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from edgedistill.data.images import size_text
from edgedistill.errors import InputError
from edgedistill.export import graphs, infer, qdq
from edgedistill.run import interrupts
from edgedistill.sources.graphs import features_from, sha256_graph

MIN_OPSET, QUANTIZED_OPSET, MAX_OPSET = 11, 13, 23  # per-channel scales came with 13
MAX_BYTES = 2**31 - 1  # of a protobuf message
MAX_PX, MAX_BATCH = 4096, 256
CONTROL_FLOW = ("If", "Loop", "Scan")
QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger"),
)
LAST_OPERATORS = ("Softmax", "LogSoftmax")  # they change no order of the classes
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
Size = tuple[int, int]  # height and width


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A classifier of somebody else, in float32, with the names and shapes of its ends.

    Attributes:
        file: the ONNX file.
        sha256: its hash.
        model: the graph; optimized by ONNX Runtime's basic passes, with its constants inside.
        input: name of the input; `uint8` if it takes bytes.
        scores: name of the output of class scores [B, C].
        output: name of the tensor of logits: the scores, or what comes before their softmax.
        softmax: the operator between the two; "" without one.
        channels_first: [B, 3, H, W] or [B, H, W, 3].
        size: height and width of its input in pixels.
        half: whether it came in float16.
        notes: what was changed, a sentence each.
        metadata: the file's properties, which may name the classes.
    """

    file: Path
    sha256: str
    model: ModelProto
    input: str
    uint8: bool
    scores: str
    output: str
    softmax: str
    channels_first: bool
    size: Size
    half: bool
    notes: tuple[str, ...]
    metadata: dict[str, str]


def read(file: Path, output: str | None = None, px: int | Size | None = None) -> Imported:
    """Read and check a classifier.

    Args:
        file: the ONNX file; tensors outside it must be in its folder.
        output: name of the class scores; by default the first output.
        px: side of the input in pixels, or height and width, for a graph that takes any size.

    Raises:
        InputError: it cannot be read, or it is no classifier of images in float; the message names what is wrong.
    """
    model = _load(file)
    _refuse_foreign_operators(file, model)
    metadata, notes = {entry.key: entry.value for entry in model.metadata_props}, list[str]()
    was_half = _widen(model)
    if was_half:
        notes.append("its float16 weights were converted to float32")
    model = _convert(file, model, notes)
    size, channels_first = _set_size(file, _image_input(file, model), px)
    model = _optimized(file, model)
    _refuse_operators(file, model.graph)
    image = _image_input(file, model)
    scores = _class_scores(file, model, output)
    logits, softmax = _without_softmax(model, scores)
    if softmax:
        notes.append(f"its last {softmax} was left out: labels are the same, and probabilities are computed later")
    return Imported(
        file=file,
        sha256=sha256_graph(file.resolve()),  # its weights are beside the file that a link leads to
        model=model,
        input=image.name,
        uint8=image.type.tensor_type.elem_type == TensorProto.UINT8,
        scores=scores,
        output=logits,
        softmax=softmax,
        channels_first=channels_first,
        size=size,
        half=was_half,
        notes=tuple(notes),
        metadata=metadata,
    )


def _load(file: Path) -> ModelProto:
    if not file.is_file():  # reading a FIFO may wait for ever
        raise InputError(f"{file}: is not a file", "name an ONNX file")
    try:
        model: ModelProto = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's errors share no public base
        raise InputError(f"{file}: is not an ONNX file ({' '.join(str(error).split())[:200]})") from None
    if not model.graph.node:
        raise InputError(f"{file}: is not an ONNX file with a graph")
    folder, total = file.resolve().parent, file.stat().st_size
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            total += _external_bytes(file, folder, tensor)
    if total > MAX_BYTES:
        raise InputError(f"{file}: has {total / 1e9:.1f} GB, and at most 2 GB are supported")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: its external data cannot be read ({reason})") from None
    return model


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for part in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(part)


def _external_bytes(file: Path, folder: Path, tensor: TensorProto) -> int:
    """The size of a tensor in another file, which must be in the model's folder, links followed."""
    try:
        info = ExternalDataInfo(tensor)
        place = (folder / str(info.location)).resolve()
        is_file = place.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have, a length that is no number
        raise InputError(f"{file}: tensor {tensor.name} is in a file that cannot be read ({error})") from None
    if not place.is_relative_to(folder):
        raise InputError(
            f"{file}: tensor {tensor.name} is in {info.location}, outside of the model's folder",
            "put the file beside the model",
        )
    if not is_file:
        raise InputError(f"{file}: tensor {tensor.name} is in {info.location}, which is not there")
    return int(info.length or place.stat().st_size)


def _refuse_foreign_operators(file: Path, model: ModelProto) -> None:
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    foreign = [name for name in foreign if name not in {f"{part.domain}.{part.name}" for part in model.functions}]
    if foreign:
        raise InputError(
            f"{file}: has the operator {foreign[0]}, which is not of the ONNX standard", "export it without it"
        )


def _refuse_operators(file: Path, graph: GraphProto) -> None:
    """Refuse what is left of control flow and of int8 after the optimization."""
    for node in graph.node:
        if node.op_type in CONTROL_FLOW:
            raise InputError(
                f"{file}: has control flow: node {node.name or node.output[0]} is {node.op_type}",
                "export it without branches and loops that depend on the images",
            )
        if node.op_type in QUANTIZED:
            raise InputError(
                f"{file}: is quantized already: node {node.name or node.output[0]} is {node.op_type}",
                "name the float model that it was made from",
            )


def _widen(model: ModelProto) -> bool:
    """Convert a float16 graph to float32, in place; whether there was anything to convert."""
    graph, widened = model.graph, False
    for tensor in _tensors(graph):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
            widened = True
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i, widened = TensorProto.FLOAT, True
    for entry in (*graph.input, *graph.output):
        if entry.type.tensor_type.elem_type == TensorProto.FLOAT16:
            entry.type.tensor_type.elem_type, widened = TensorProto.FLOAT, True
    if widened:
        del graph.value_info[:]
    return widened


def _convert(file: Path, model: ModelProto, notes: list[str]) -> ModelProto:
    """The graph in an opset that has per-channel scales."""
    try:
        opset = graphs.opset(model)
    except StopIteration:
        raise InputError(f"{file}: does not state its opset") from None
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise InputError(
            f"{file}: has opset {opset}, and {MIN_OPSET} to {MAX_OPSET} are supported",
            f"export it with an opset from {QUANTIZED_OPSET} to 20",
        )
    if opset >= QUANTIZED_OPSET:
        return model
    try:
        converted: ModelProto = onnx.version_converter.convert_version(model, QUANTIZED_OPSET)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter's errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file}: has opset {opset}, and onnx cannot convert it to {QUANTIZED_OPSET} ({reason})",
            f"export it with an opset from {QUANTIZED_OPSET} to 20",
        ) from None
    notes.append(f"its opset {opset} was converted to {QUANTIZED_OPSET}")
    return converted


def _optimized(file: Path, model: ModelProto) -> ModelProto:
    """The graph after ONNX Runtime's basic passes: constants folded, batch norms in the convolutions before them.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with interrupts.temporary_folder() as folder:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            optimized: ModelProto = onnx.load(folder / "optimized.onnx")
        except Exception as error:  # ONNX Runtime's errors share no base class
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{file}: ONNX Runtime cannot load it ({reason})") from None
    if any(node.domain not in ("", "ai.onnx") for node in optimized.graph.node):
        optimized = model  # it fused something into an operator of its own
    tidied = graphs.tidy(optimized)
    standard = [entry for entry in tidied.opset_import if entry.domain in ("", "ai.onnx")]
    del tidied.opset_import[:]
    tidied.opset_import.extend(standard)
    names: set[str] = set()
    for index, node in enumerate(tidied.graph.node):
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{index}_{node.output[0]}"
        names.add(node.name)
    return _with_flat_biases(graphs.unshare_weights(tidied))


def _with_flat_biases(model: ModelProto) -> ModelProto:
    """Give every Gemm whose constant bias is broadcast a bias [C] of its own, in place, and return the model.

    ONNX allows [1, C], [1] and a scalar, and ONNX Runtime makes such a Gemm from MatMul and Add.
    """
    tensors = graphs.constants(model)
    for node in model.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or not {node.input[1], node.input[2]} <= tensors.keys():
            continue
        bias, channels = tensors[node.input[2]], tensors[node.input[1]].shape[qdq.output_axis(node)]
        if bias.shape == (channels,) or any(side != 1 for side in bias.shape[:-1]):
            continue
        name = f"{node.input[2]}_{node.name}"
        flat = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (channels,)))
        model.graph.initializer.append(numpy_helper.from_array(flat, name))
        node.input[2] = name
    return model


def _image_input(file: Path, model: ModelProto) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs) or "none"
        raise InputError(f"{file}: has {len(inputs)} inputs ({names}), and one, of images, is supported")
    shape, kind = _shape(inputs[0]), inputs[0].type.tensor_type.elem_type
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or kind not in (*FLOAT_TYPES, TensorProto.UINT8):
        raise InputError(
            f"{file}: its input {inputs[0].name} is {helper.tensor_dtype_to_string(kind)[12:].lower()} {shape}, not "
            "images of three channels in float or uint8"
        )
    batch = inputs[0].type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value") and not 1 <= batch.dim_value <= MAX_BATCH:
        raise InputError(f"{file}: takes {batch.dim_value} images at once, and 1 to {MAX_BATCH} are supported")
    return inputs[0]


def _set_size(file: Path, image: onnx.ValueInfoProto, px: int | Size | None) -> tuple[Size, bool]:
    """Height and width of the input, which a dynamic one gets, and whether the channels come first."""
    dims = image.type.tensor_type.shape.dim
    channels_first = dims[1].dim_value == 3
    spatial = dims[2:] if channels_first else dims[1:3]
    fixed = [dim.dim_value for dim in spatial]
    if not any(fixed) and px is None:
        raise InputError(f"{file}: takes images of any size", f"state one: `edgedistill quantize {file} --px 224`")
    height, width = (px, px) if isinstance(px, int) else px or (side or max(fixed) for side in fixed)
    problem = f"{file}: its input is {' x '.join(str(side or '?') for side in fixed)} px, "
    if any(own not in (0, side) for own, side in zip(fixed, (height, width), strict=True)):
        raise InputError(f"{problem}not {size_text((height, width))}", "leave out --px")
    if not all(1 <= side <= MAX_PX for side in (height, width)):
        raise InputError(f"{problem}and 1 to {MAX_PX} px are supported")
    spatial[0].dim_value, spatial[1].dim_value = height, width
    return (height, width), channels_first


def _shape(entry: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param or "?" for dim in entry.type.tensor_type.shape.dim]


def _class_scores(file: Path, model: ModelProto, name: str | None) -> str:
    outputs = {entry.name: entry for entry in model.graph.output}
    if name is not None and name not in outputs:
        raise InputError(f"{file}: has no output {name}", f"name one of {', '.join(outputs)}")
    entry = outputs[name] if name else model.graph.output[0]
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    shape = _shape(next(output for output in inferred if output.name == entry.name))
    classes = shape[1] if len(shape) == 2 else None
    if not isinstance(classes, int) or classes < 2:
        raise InputError(
            f"{file}: is no classifier: its output {entry.name} is {shape}, not scores of classes [B, C]",
            "name another output" if len(outputs) > 1 else "",
        )
    producers = graphs.producers(model)
    last = producers.get(entry.name)
    if last is not None and last.op_type == "Sigmoid":
        raise InputError(
            f"{file}: is no classifier of one label: its output {entry.name} comes from Sigmoid, as several labels do"
        )
    if operator := features_from(model, entry.name):
        raise InputError(f"{file}: is no classifier: its output {entry.name} comes from {operator}, as features do")
    return str(entry.name)


def _without_softmax(model: ModelProto, scores: str) -> tuple[str, str]:
    """The tensor of the logits, and the softmax behind it: in 256 steps its values would tie."""
    last: NodeProto | None = graphs.producers(model).get(scores)
    if last is not None and last.op_type in LAST_OPERATORS and graphs.attribute(last, "axis", -1) in (1, -1):
        return str(last.input[0]), str(last.op_type)
    return scores, ""


def run(imported: Imported, pixels_BCHW: np.ndarray) -> np.ndarray:
    """The scores [B, C] of the file itself, as it came, for its own normalized input; one image at a time if it must.

    Raises:
        EdgeDistillError: ONNX Runtime cannot load it.
    """
    session = infer.session(imported.file)
    image = session.get_inputs()[0]
    fed = pixels_BCHW.astype({"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(image.type, np.float32))
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    rows = [fed[start : start + batch] for start in range(0, len(fed), batch)]
    short = batch - len(rows[-1])
    rows[-1] = np.concatenate([rows[-1], np.repeat(rows[-1][:1], short, axis=0)]) if short else rows[-1]
    scores = np.concatenate([session.run([imported.scores], {image.name: part})[0] for part in rows])
    return np.asarray(scores[: len(fed)], dtype=np.float32)
