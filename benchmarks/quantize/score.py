"""Scores of one model: accuracy compared with fp32's on the same images, size, and which operations are quantized.

N images, C classes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from edgedistill.agent import metrics
from edgedistill.agent.metrics import accuracy, agreement

QUANTIZES, DEQUANTIZES = "QuantizeLinear", "DequantizeLinear"


def model_scores(logits_NC: np.ndarray, reference_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
    """Top-1, points lost against the reference with their 95 % interval, and agreement with its labels."""
    predicted_N, reference_labels_N = logits_NC.argmax(1), reference_NC.argmax(1)
    counts = accuracy(labels_N, predicted_N)
    return {
        "n_test": counts["n"],
        "top1": round(counts["top1"], 6),
        "drop_points": drop_points(predicted_N, reference_labels_N, labels_N),
        "agreement": round(agreement(predicted_N, reference_labels_N), 6),
    }


def drop_points(predicted_N: np.ndarray, reference_N: np.ndarray, labels_N: np.ndarray) -> list[float]:
    """[loss, low, high] of top-1 from the reference to the model on the same images, in percentage points."""
    return [round(100 * points, 4) for points in metrics.drop(labels_N, reference_N, predicted_N)]


def size_mb(path: Path) -> float:
    """Size of a model in MB (10^6 bytes), its file of weights included."""
    weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else [path.with_name(path.name + ".data")]
    return round(sum(file.stat().st_size for file in (path, *weights) if file.exists()) / 1e6, 3)


def placement(path: Path) -> dict[str, Any]:
    """Count a graph's quantizing nodes, and for each type of operation the inputs that come from them."""
    return _openvino(path) if path.suffix == ".xml" else _onnx(path)


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    dequantized = {name for node in nodes if node.op_type == DEQUANTIZES for name in node.output}
    fed = Counter(node.op_type for node in nodes for name in node.input if name in dequantized)
    counts = Counter(node.op_type for node in nodes)
    return {"quantize": counts[QUANTIZES], "dequantize": counts[DEQUANTIZES], "fed": dict(fed.most_common())}


def _openvino(path: Path) -> dict[str, Any]:
    root = ElementTree.parse(path).getroot()
    types = {layer.get("id"): str(layer.get("type")) for layer in root.iterfind("./layers/layer")}
    edges = [(types[edge.get("from-layer")], types[edge.get("to-layer")]) for edge in root.iterfind("./edges/edge")]
    fed = Counter(into for origin, into in edges if origin == "FakeQuantize")
    return {"fake_quantize": Counter(types.values())["FakeQuantize"], "fed": dict(fed.most_common())}
