"""What is said of one model: accuracy beside fp32's on the same images, size, and where it is quantized.

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


def scored(logits_NC: np.ndarray, reference_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
    """Top-1, points lost against the reference with their 95 % interval, and agreement with its labels."""
    mine_N, theirs_N = logits_NC.argmax(1), reference_NC.argmax(1)
    found = accuracy(labels_N, mine_N)
    return {
        "n_test": found["n"],
        "top1": round(found["top1"], 6),
        "drop_points": drop(mine_N, theirs_N, labels_N),
        "agreement": round(agreement(mine_N, theirs_N), 6),
    }


def drop(mine_N: np.ndarray, reference_N: np.ndarray, labels_N: np.ndarray) -> list[float]:
    """[loss, low, high] from the reference to mine on the same images, in points."""
    return [round(100 * value, 4) for value in metrics.drop(labels_N, reference_N, mine_N)]


def size_mb(path: Path) -> float:
    """Megabytes (10^6 bytes) of a model, with the weights that stand beside it."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else [path.with_name(path.name + ".data")]
    return round(sum(one.stat().st_size for one in (path, *beside) if one.exists()) / 1e6, 3)


def placement(path: Path) -> dict[str, Any]:
    """How many quantizing nodes a graph has, and how many inputs of each type of operation come from them."""
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
    fed = Counter(into for source, into in edges if source == "FakeQuantize")
    return {"fake_quantize": Counter(types.values())["FakeQuantize"], "fed": dict(fed.most_common())}
