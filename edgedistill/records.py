"""The frozen records that are passed between steps.

Every record is plain data: `run.files.write_record` writes it to JSON and `run.files.read_record` reads it back
without loss. Names contain the units; fractions are in [0, 1], scores have their metric's own scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "fp16", "int8"]
Target = Literal["any", "cpu", "tensorrt"]
HOST_TO_HOST = "host-to-host"  # the measuring mode that every backend has: the time that an application waits


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy over n images, as `agent.metrics.accuracy` computes it; all fractions, with 95 % intervals."""

    n: int
    top1: float
    top1_ci95: tuple[float, float]
    balanced: float
    balanced_ci95: tuple[float, float]

    def score(self, metric: str) -> float:
        """The value of `metric`, "top1" or "balanced" (the recipe's `data.score`)."""
        return float(getattr(self, metric))

    def interval(self, metric: str) -> tuple[float, float]:
        """The 95 % interval of `score(metric)`."""
        low, high = getattr(self, f"{metric}_ci95")
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class MetricScore:
    """One similarity metric's score of one source on the probe, with its 95 % bootstrap interval.

    `ceiling` is the score of a perfect source on these labels, None if the metric has no such bound.
    """

    score: float
    low: float
    high: float
    ceiling: float | None = None

    @property
    def of_ceiling(self) -> float | None:
        """Score / ceiling, comparable across targets; None if there is no ceiling above 0."""
        return self.score / self.ceiling if self.ceiling is not None and self.ceiling > 0 else None


@dataclass(frozen=True, kw_only=True)
class SourceWeight:
    """One source's weight in the mixture, and its score by every metric."""

    name: str
    weight: float
    scores: dict[str, MetricScore]


@dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """The sources' weights, which are >= 0 and sum to 1; `metric` is the metric that they are computed from."""

    metric: str
    probe_images: int
    power: float
    sources: tuple[SourceWeight, ...]
    disagreement: str = ""

    @property
    def effective_sources(self) -> float:
        """Effective number of sources, 1 / sum(alpha^2)."""
        total = sum(source.weight**2 for source in self.sources)
        return 1.0 / total if total else 0.0

    @property
    def alphas(self) -> dict[str, float]:
        """Weight by source name."""
        return {source.name: source.weight for source in self.sources}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a forward pass of one image; `macs_m` in millions of multiply-accumulates (1 MAC = 2 FLOPs).

    `activation_mb` is the peak of the activations in fp32 (0 if it was not counted); `int8_risks` names operators that
    may make an int8 graph of the net slow or inexact.
    """

    macs_m: float
    params_m: float
    weights_mb: float
    activation_mb: float = 0.0
    int8_risks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """The student's architecture, sufficient to rebuild it; `initial_weights` names the origin of its first weights."""

    family: str
    options: dict[str, Any]
    input_px: int
    num_classes: int
    cost: Cost
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    initial_weights: str = "random"


@dataclass(frozen=True, kw_only=True)
class TeacherScore:
    """The student's teacher, a mixture of linear probes: accuracy on val (not trained on) and the sources' shares."""

    kind: str
    val: Accuracy
    weights: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained student on disk (`path` is relative to the run directory). `test` is measured once, after training."""

    path: str
    sha256: str
    spec: StudentSpec
    classes: tuple[str, ...]
    val: Accuracy
    test: Accuracy
    method: str
    steps: int
    train_seconds: float
    teacher: TeacherScore | None = None


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """An ONNX graph on disk. Input `images`: uint8 [B, px, px, 3] in RGB; output `logits`: float32 [B, C]."""

    path: str
    sha256: str
    precision: Precision
    target: Target
    opset: int
    parent_sha256: str
    size_mb: float
    parity: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of this graph in rungs, bundles and benches: fp32, fp16, int8-cpu, int8-tensorrt."""
        return f"{self.precision}-{self.target}" if self.precision == "int8" else self.precision


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One artifact of the ladder, run on the same test images and compared with torch."""

    artefact: str
    sha256: str
    precision: str
    target: str
    backend: str
    accuracy: Accuracy
    agreement_with_torch: float
    simulated: bool = False


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A named check of a measured value against a bound, and whether it passed."""

    name: str
    value: float
    bound: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy loss of an int8 graph against fp32 on the same n images of val, in points, with a paired 95 % interval.

    `differ` is the percentage of all `images`, labeled or not, for which the two graphs predict different labels.
    """

    points: float
    low: float
    high: float
    n: int
    differ: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """The accuracy guard's outcome for a target: the loss, whether it is within the bound, and the layers in float.

    `floats` are these layers, worst first. `qat` is the share of images on which the graph and the fake-quantized
    student predict the same label, if it was trained so. `before` is the loss without either.
    """

    target: Target
    holds: bool
    max_drop: float
    drop: Drop
    floats: tuple[str, ...] = ()
    before: Drop | None = None
    qat: float | None = None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The graph chosen for a target, and why. `ratio` is fp32's (fp16's) time over int8's, if it was measured."""

    target: Target
    artefact: str
    precision: Precision
    why: str
    ratio: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs in order (torch first), the gates on them, and the images on which they disagree most."""

    rungs: tuple[Rung, ...]
    gates: tuple[Gate, ...]
    worst: tuple[int, ...] = ()


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
    "quiet", or "noisy" with its causes and remedies.
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

    @property
    def title(self) -> str:
        """The artifact, with the mode unless it is host to host."""
        return self.artefact if self.mode == HOST_TO_HOST else f"{self.artefact}, {self.mode}"


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
