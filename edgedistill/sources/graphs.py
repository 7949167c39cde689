"""What an ONNX graph's structure says about its outputs, and the files that it consists of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.errors import InputError
from edgedistill.run.files import digest, sha256_file

if TYPE_CHECKING:
    from onnx import ModelProto

# operators that leave the meaning of their input's channels as it is
PASSED = {
    *("Cast", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze"),
    *("Transpose", "Unsqueeze"),
}
# operators that a backbone or its pooling ends with; class scores come from a matrix, with or without a bias
FEATURE_OPERATORS = {
    *("AveragePool", "BatchNormalization", "Clip", "Concat", "Gather", "Gelu", "GlobalAveragePool", "GlobalMaxPool"),
    *("HardSwish", "LayerNormalization", "LpNormalization", "MaxPool", "ReduceMax", "ReduceMean", "Relu", "Slice"),
}


def weight_files(file: Path) -> list[Path]:
    """The files beside a graph that hold its weights ("external data"), sorted; none where it holds them itself.

    Raises:
        InputError: one of them is missing.
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception:  # of a broken file, which the runtime names when it loads it
        return []
    tensors = [tensor for tensor in graph.initializer if uses_external_data(tensor)]
    locations = sorted({str(ExternalDataInfo(tensor).location) for tensor in tensors})
    files = [file.parent / location for location in locations]
    if lost := [path for path in files if not path.is_file()]:
        place = lost[0].resolve()
        raise InputError(f"{place}: no such file; {file.name} has weights there", "copy it beside the graph")
    return files


def sha256_graph(file: Path) -> str:
    """The sha256 of a graph; with weights in other files, of all of them.

    Raises:
        InputError: one of them is missing.
    """
    others = weight_files(file)
    return digest([sha256_file(path) for path in (file, *others)]) if others else sha256_file(file)


def feature_operator(file: Path, output: str) -> str:
    """The operator that the graph's output comes from if it is one that features come from, else ""."""
    import onnx

    return features_from(onnx.load(file, load_external_data=False), output)


def features_from(model: ModelProto, output: str) -> str:
    """The same of a graph in memory."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in PASSED:
        node = producers.get(node.input[0])
    return str(node.op_type) if node is not None and node.op_type in FEATURE_OPERATORS else ""
