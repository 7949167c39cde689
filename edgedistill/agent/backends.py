"""The runtimes: BACKENDS is the one place where a backend is entered.

B images, H and W pixels, C target classes. A backend is built once per artefact, batch size and process; `infer` takes
host arrays and returns host arrays, so its duration is what an application would wait for.

Named modes of measuring:

    host-to-host         from images in the host's memory to logits in the host's memory
    compute              the time on the accelerator alone, between two of its own events
    ...-graph            the same, the work launched as one CUDA graph
    offline-B            batches of B images, host to host: throughput; any backend can, being built for that batch
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Protocol

import numpy as np

from .job import AgentError
from .ncnn import Ncnn
from .openvino import OpenVino
from .ort import PROVIDERS, OnnxRuntime
from .tensorrt import TensorRt

OFFLINE = re.compile(r"offline-([1-9][0-9]*)")


class Backend(Protocol):
    """What the worker asks of a runtime. `modes`: named mode -> what its timed window holds."""

    modes: Dict[str, str]

    def build(self, model_path: Path, threads: int, batch: int = 1) -> None:
        """Load an artefact for batches of that size; AgentError when the runtime is missing or not able to."""

    def infer(self, images_BHWC: np.ndarray, mode: str = "host-to-host") -> np.ndarray:
        """uint8 [B, H, W, 3] in RGB -> float32 logits [B, C], launched as the mode says."""

    def compute_ms(self, images_BHWC: np.ndarray, mode: str) -> float:
        """Milliseconds on the accelerator for one batch; for the compute modes."""

    def facts(self) -> Dict[str, Any]:
        """At least {"version"}, built or not; AgentError when the runtime is missing."""

    def close(self) -> None:
        """Let go of the artefact."""


BACKENDS: Dict[str, Callable[[], Backend]] = {
    **{f"onnxruntime-{name}": partial(OnnxRuntime, name) for name in PROVIDERS},
    "openvino": partial(OpenVino, reduced=False),
    "openvino-reduced": partial(OpenVino, reduced=True),
    "ncnn": partial(Ncnn, "fp32"),
    "ncnn-half": partial(Ncnn, "fp16"),
    "ncnn-bf16": partial(Ncnn, "bf16"),
    "tensorrt": partial(TensorRt, "tensorrt"),
    "tensorrt-rtx": partial(TensorRt, "tensorrt_rtx"),
}
# of those that are neither ONNX Runtime's nor TensorRT's
TARGETS = {"openvino": "cpu", "openvino-reduced": "cpu", **dict.fromkeys(("ncnn", "ncnn-half", "ncnn-bf16"), "ncnn")}
# their arithmetic is not the host's: judged by what accuracy loses against the host's answers (verdict.py)
OWN_ARITHMETIC = frozenset(TARGETS)


def create(name: str) -> Backend:
    """An empty backend of that name.

    Raises:
        AgentError: exit code 2; there is none.
    """
    if name not in BACKENDS:
        raise AgentError(f"no backend is called {name}; one of: {', '.join(BACKENDS)}")
    return BACKENDS[name]()


def target_of(name: str) -> str:
    """Whose int8 graphs a backend runs beside the graphs for any target: "cpu", "tensorrt", or "any" for none.

    Raises:
        AgentError: exit code 2; there is no such backend.
    """
    create(name)
    provider = PROVIDERS.get(name.partition("onnxruntime-")[2])
    return provider.target if provider else TARGETS.get(name, "tensorrt")


def runs(name: str, target: str) -> bool:
    """Whether a backend runs the graphs that are made for a target; "ncnn" runs its own alone.

    Raises:
        AgentError: exit code 2; there is no such backend.
    """
    own = target_of(name)
    return target == own or (target == "any" and own != "ncnn")


def batch_of(mode: str) -> int:
    """How many images one query of that mode holds."""
    found = OFFLINE.fullmatch(mode)
    return int(found.group(1)) if found else 1


def window(backend: Backend, mode: str) -> str:
    """What the timed window of a mode holds.

    Raises:
        AgentError: exit code 2; the backend has no such mode.
    """
    batch = batch_of(mode)
    if OFFLINE.fullmatch(mode):
        return f"{backend.modes['host-to-host']}; batches of {batch}"
    if mode not in backend.modes:
        raise AgentError(f"this backend has no mode {mode}; one of: {', '.join(backend.modes)}, offline-B")
    return backend.modes[mode]


def available() -> Dict[str, str]:
    """Backend name -> its runtime's version, or why it cannot run here."""
    found: Dict[str, str] = {}
    for name in BACKENDS:
        try:
            found[name] = str(create(name).facts()["version"])
        except AgentError as error:
            found[name] = f"not here: {error}"
    return found
