"""What an ONNX graph's structure says about its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
