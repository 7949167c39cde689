"""OpenVINO's own interface on the processor, x86 and ARM.

    openvino            float graphs in float32 (the hint says so: by default OpenVINO takes bf16 or fp16 where the
                        processor has it), int8 graphs in int8
    openvino-reduced    what is not int8 in the 16-bit float that OpenVINO takes by default on this processor

What it fused, and in which precision each node runs, is read from the compiled model (get_runtime_model).
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict

import numpy as np

from . import cache
from .job import AgentError

WINDOW = "infer of an OpenVINO request: host arrays in, host arrays out; no decoding, no resizing"
FLOAT32 = "f32"
IDLE = {"Const", "Input", "Output"}  # nodes of the runtime model that compute nothing


class OpenVino:
    """One compiled model on the processor and one request."""

    def __init__(self, reduced: bool) -> None:
        self.reduced = reduced
        self.modes = {"host-to-host": WINDOW}
        self.compiled: Any = None
        self.request: Any = None

    def build(self, model_path: Path, threads: int, batch: int = 1) -> None:
        """A model of fixed shape, compiled for latency with `threads` threads, or read from this device's cache.

        Raises:
            AgentError: exit code 2; the runtime is missing or cannot load the graph, or the processor has no such type.
        """
        runtime, core, kind = _core(self.reduced)
        folder = cache.folder("openvino")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": kind,
            **({"CACHE_DIR": str(folder)} if folder.is_dir() else {}),
        }
        try:
            model = core.read_model(str(model_path))
            shape = model.input(0).partial_shape
            shape[0] = batch
            model.reshape(shape)
            self.compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            version = _version(runtime)
            raise AgentError(f"{model_path.name}: openvino {version} cannot load it ({reason})") from None
        self.request = self.compiled.create_infer_request()

    def infer(self, images_BHWC: np.ndarray, mode: str = "host-to-host") -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 logits [B, C]."""
        # the input is read in place; the answer is copied, for the request's own memory is written again
        logits_BC: np.ndarray = np.array(self.request.infer({0: images_BHWC}, share_inputs=True)[0])
        return logits_BC

    def compute_ms(self, images_BHWC: np.ndarray, mode: str) -> float:
        """A processor has no time of its own beside the host's.

        Raises:
            AgentError: always; `modes` has no such mode.
        """
        raise AgentError(f"OpenVINO has no mode {mode}; one of: {', '.join(self.modes)}")

    def facts(self) -> Dict[str, Any]:
        """The version and, once built, threads, the float type, and what the compiled model consists of.

        Raises:
            AgentError: exit code 2; the runtime is missing, or the processor has no such type.
        """
        runtime, _, kind = _core(self.reduced)
        facts: Dict[str, Any] = {"version": _version(runtime)}
        if self.compiled is None:
            return {**facts, "float": kind}
        return {
            **facts,
            "float": self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "threads": int(self.compiled.get_property("INFERENCE_NUM_THREADS")),
            "from_cache": bool(self.compiled.get_property("LOADED_FROM_CACHE")),
            **_layers(self.compiled.get_runtime_model()),
        }

    def close(self) -> None:
        """Let go of request and model."""
        self.request = self.compiled = None


def _layers(model: Any) -> Dict[str, Any]:
    """{"layers": kernel -> number of nodes, "precisions": type -> number, "fused": nodes that have none of their own}.

    A node of the compiled model names every node of the graph that it does the work of.
    """
    nodes = [{name: entry.astype(str) for name, entry in node.get_rt_info().items()} for node in model.get_ops()]
    # a Reshape without a kernel only names the same memory otherwise
    nodes = [
        node for node in nodes if node["layerType"] not in IDLE and not node["primitiveType"].startswith("unknown")
    ]
    kernels = Counter(f"{node['layerType']} {node['primitiveType']}" for node in nodes)
    precisions = Counter(node["runtimePrecision"] for node in nodes)
    origins = [len([name for name in node["originalLayersNames"].split(",") if name]) for node in nodes]
    return {
        "layers": dict(sorted(kernels.items())),
        "precisions": dict(sorted(precisions.items())),
        "fused": sum(count - 1 for count in origins if count > 1),
    }


def _core(reduced: bool) -> Any:
    """The module, its core, and the float type that is asked for, "f32", "bf16" or "f16"."""
    # on import OpenVINO reports to its makers unless the user has refused; without this package it cannot
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        fix = f"{sys.executable} -m pip install openvino"
        raise AgentError(f"openvino does not import in {sys.executable} ({error}); {fix}") from None
    core = openvino.Core()
    if "CPU" not in core.available_devices:
        raise AgentError(f"openvino {_version(openvino)} has no plugin for this processor")
    kind = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    if reduced and kind == FLOAT32:
        raise AgentError("OpenVINO computes in float32 on this processor, it has no faster 16-bit float; use openvino")
    return openvino, core, kind if reduced else FLOAT32


def _version(runtime: Any) -> str:
    return str(runtime.__version__).partition("-")[0]
