"""What is measured on devices: latency, energy and accuracy of a graph, and the engines built from it.

Records as in records.py: plain data, written to JSON and read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgedistill.records import OMITTED_AT_DEFAULT, Accuracy

HOST_TO_HOST = "host-to-host"  # the measuring mode that every backend has: the time that an application waits


@dataclass(frozen=True, kw_only=True)
class Device:
    """An entry of deploy/devices.yaml; `transport` is "local" or "ssh", `python` the interpreter on the device.

    `backends` are the device's default backends: `bench` uses them if none are named, and `devices` expects them.
    """

    name: str
    transport: str = "local"
    host: str = ""
    python: str = ""
    workdir: str = ""
    backends: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, by this Python: its packages are those of this process."""
        return self.transport == "local" and not self.python


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Closed-loop latency: all samples, from which percentiles are derived. `window` describes what is timed."""

    samples_ms: tuple[float, ...]
    warmup_ms: tuple[float, ...]
    window: str
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy per image in millijoules, the meter, and what that meter covers; idle power is included."""

    mj_per_image: float
    meter: str
    covers: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The measurement of one artifact on one device, backend and measuring mode (agent/backends.py).

    `latency` has no samples if the predictions differ from those of the host; `warnings` then says so. `verdict` is
    "quiet", "noisy" with its causes and remedies, or "too few samples" (or rounds) with the least number. `to_label`
    has the latencies from a picture, "file" or "frame" (agent/to_label.py), to its label, timed in turn with the
    model's own.
    """

    device: str
    backend: str
    backend_version: str
    artefact: str
    sha256: str
    precision: str
    latency: Latency
    accuracy: Accuracy | None
    agreement_with_host: float | None
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    ratio_to_fp32: tuple[float, float, float] | None = None
    mode: str = HOST_TO_HOST
    verdict: str = ""
    energy: Energy | None = None
    to_label: dict[str, Latency] = field(default_factory=dict, metadata=OMITTED_AT_DEFAULT)

    @property
    def title(self) -> str:
        """The artifact, with the mode unless it is host to host."""
        return self.artefact if self.mode == HOST_TO_HOST else f"{self.artefact}, {self.mode}"


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """A backend and a graph that competed on a device: its median latency in ms, and how much faster than the simplest.

    `same` is whether its answers are those of the verified model; `agreement` is the share of answers equal to the
    host's, and `loss` what accuracy loses against them, with a 95 % interval, of a backend with arithmetic of its own.
    """

    backend: str
    artefact: str
    p50_ms: float
    ratio: tuple[float, float, float] | None
    same: bool
    agreement: float | None
    loss: tuple[float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The backend and graph chosen for a device, why, and all that competed, the simplest first.

    `ratio` is the simplest's time over the fastest's in the confirmation; None if the simplest was the fastest.
    """

    device: str
    backend: str
    artefact: str
    why: str
    ratio: tuple[float, float, float] | None
    rows: tuple[EngineRow, ...]
    cpu: str
    cpu_flags: tuple[str, ...]
    threads: int


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """An engine's layers according to the builder's log.

    `types` counts them by precision. `weighted` is the precision of every ONNX node with weights, by name. `pairs` is
    the number of the graph's Q and DQ nodes of activations; those in `unfused` have kernels of their own, and those in
    `unknown` are missing in the log.
    """

    total: int
    types: dict[str, int]
    weighted: dict[str, str]
    pairs: int
    unfused: tuple[str, ...]
    unknown: tuple[str, ...]

    def share(self, precision: str) -> float:
        """Share of the layers that run in a precision."""
        return self.types.get(precision, 0) / self.total


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine built ahead of time from one graph for one compute capability ("sm89") and for batches of `batch`.

    `path` is the file beside this record; if there is none, `failed` says why. `seconds` is the builder's total time.
    `layers` is None if its log lists none.
    """

    artefact: str
    onnx_sha256: str
    capability: str
    builder: str
    batch: int
    seconds: float
    path: str = ""
    sha256: str = ""
    size_mb: float = 0.0
    layers: EngineLayers | None = None
    failed: str = ""
