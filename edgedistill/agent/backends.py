"""The runtimes: BACKENDS is the one place where a backend is entered.

B images, H and W pixels, C target classes. A backend is built once per artefact and process; `infer` takes host
arrays and returns host arrays, so its duration is what an application would wait for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Dict, Protocol

import numpy as np

from . import machine
from .job import AgentError

PACKAGES = {"CPUExecutionProvider": "onnxruntime", "CUDAExecutionProvider": "onnxruntime-gpu"}


class Backend(Protocol):
    """What the worker asks of a runtime."""

    window: str

    def build(self, model_path: Path, threads: int) -> None:
        """Load an artefact; AgentError when the runtime is missing or not able to."""

    def infer(self, images_BHWC: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] in RGB -> float32 logits [B, C]."""

    def facts(self) -> Dict[str, Any]:
        """At least {"version"}, built or not; AgentError when the runtime is missing."""

    def close(self) -> None:
        """Let go of the artefact."""


class OnnxRuntime:
    """ONNX Runtime with one execution provider."""

    window = "session.run of ONNX Runtime: host arrays in, host arrays out; no decoding, no resizing"

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.session: Any = None

    def build(self, model_path: Path, threads: int) -> None:
        """A session of `threads` threads inside an operator and one operator at a time.

        Raises:
            AgentError: exit code 2; the runtime or its provider is missing.
        """
        runtime = _onnxruntime(self.provider)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if machine.saturates():
            # exact kernels, as verification on the host uses them; elsewhere the flag would halve the speed for nothing
            options.add_session_config_entry("session.x64quantprecision", "1")
        self.session = runtime.InferenceSession(str(model_path), options, providers=[self.provider])
        # ONNX Runtime falls back to the CPU when a provider's libraries do not load, and says so only in its log
        if self.provider not in self.session.get_providers():
            raise AgentError(f"{self.provider} did not start; are its libraries (CUDA, cuDNN) installed?")
        self.threads = threads
        self.input = self.session.get_inputs()[0].name
        self.outputs = [self.session.get_outputs()[0].name]

    def infer(self, images_BHWC: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 logits [B, C]."""
        logits_BC: np.ndarray = self.session.run(self.outputs, {self.input: images_BHWC})[0]
        return logits_BC

    def facts(self) -> Dict[str, Any]:
        """The runtime's version and, once built, the providers and threads of the session.

        Raises:
            AgentError: exit code 2; the runtime or its provider is missing.
        """
        version = {"version": _onnxruntime(self.provider).__version__}
        if self.session is None:
            return version
        return {**version, "providers": self.session.get_providers(), "threads": self.threads}

    def close(self) -> None:
        """Let go of the session."""
        self.session = None


def _onnxruntime(provider: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        fix = f"{sys.executable} -m pip install {PACKAGES[provider]}"
        raise AgentError(f"onnxruntime does not import in {sys.executable} ({error}); {fix}") from None
    if provider not in onnxruntime.get_available_providers():
        has = ", ".join(onnxruntime.get_available_providers())
        what = f"onnxruntime {onnxruntime.__version__} has no {provider}, it has {has}"
        raise AgentError(f"{what}; {sys.executable} -m pip install {PACKAGES[provider]}")
    return onnxruntime


BACKENDS: Dict[str, Callable[[], Backend]] = {
    "onnxruntime-cpu": lambda: OnnxRuntime("CPUExecutionProvider"),
    "onnxruntime-cuda": lambda: OnnxRuntime("CUDAExecutionProvider"),
}


def create(name: str) -> Backend:
    """An empty backend of that name.

    Raises:
        AgentError: exit code 2; there is none.
    """
    if name not in BACKENDS:
        raise AgentError(f"no backend is called {name}; one of: {', '.join(BACKENDS)}")
    return BACKENDS[name]()


def available() -> Dict[str, str]:
    """Backend name -> its runtime's version, or why it cannot run here."""
    found: Dict[str, str] = {}
    for name in BACKENDS:
        try:
            found[name] = str(create(name).facts()["version"])
        except AgentError as error:
            found[name] = f"not here: {error}"
    return found
