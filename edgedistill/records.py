"""The frozen records that pass between steps, and the errors meant for people.

Every record is plain data: it is written to JSON by `run.write_record` and read back by `run.read_record`
without loss. Units are part of the names; fractions are in [0, 1], scores keep their metric's own scale.

    EdgeDistillError        1  something failed
    +-- InputError          2  the input is wrong: a recipe, a path, an image, a weights file
    +-- GateError           3  everything ran, and a check on the result says no
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "fp16", "int8"]
Target = Literal["any", "cpu", "tensorrt"]
HOST_TO_HOST = "host-to-host"  # the mode of measuring that every backend has: what an application waits for


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy over n images, as `agent.metrics.accuracy` computes it; all fractions, with 95 % intervals."""

    n: int
    top1: float
    top1_ci95: tuple[float, float]
    balanced: float
    balanced_ci95: tuple[float, float]

    def score(self, metric: str) -> float:
        """The value that the recipe's `data.score` names: "top1" or "balanced"."""
        return float(getattr(self, metric))

    def interval(self, metric: str) -> tuple[float, float]:
        """The 95 % interval that belongs to `score(metric)`."""
        low, high = getattr(self, f"{metric}_ci95")
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class MetricScore:
    """One similarity metric's score of one source on the probe, with its 95 % bootstrap interval.

    `ceiling` is what a perfect source would score on these labels, None where the metric has no such bound.
    """

    score: float
    low: float
    high: float
    ceiling: float | None = None

    @property
    def of_ceiling(self) -> float | None:
        """Score / ceiling, comparable across targets; None where there is no ceiling, or none above 0."""
        return self.score / self.ceiling if self.ceiling is not None and self.ceiling > 0 else None


@dataclass(frozen=True, kw_only=True)
class SourceWeight:
    """One source's place in the mixture: its weight, and every metric's opinion of it."""

    name: str
    weight: float
    scores: dict[str, MetricScore]


@dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """Who teaches how much. Weights are >= 0 and sum to 1; `metric` is the one they were made from."""

    metric: str
    probe_images: int
    power: float
    sources: tuple[SourceWeight, ...]
    disagreement: str = ""

    @property
    def effective_sources(self) -> float:
        """1 / sum(alpha^2): how many equally weighted sources the mixture is worth."""
        total = sum(source.weight**2 for source in self.sources)
        return 1.0 / total if total else 0.0

    @property
    def alphas(self) -> dict[str, float]:
        """Weight by source name."""
        return {source.name: source.weight for source in self.sources}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one forward pass of one image costs; `macs_m` in millions of multiply-accumulates (1 MAC = 2 FLOPs).

    `activation_mb` is the peak of the activations in fp32 (0 where it was not counted), `int8_risks` names what may
    make an int8 graph of the net slow or inexact.
    """

    macs_m: float
    params_m: float
    weights_mb: float
    activation_mb: float = 0.0
    int8_risks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """Everything needed to rebuild the student's architecture; `initial_weights` says where training starts from."""

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
    """The mixed probes that a student learned from: accuracy on val, whose labels they never saw, and source shares."""

    kind: str
    val: Accuracy
    weights: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained student on disk (`path` is relative to the run directory). `test` is measured once, at the end."""

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
        """What a rung, a bundle and a bench call this graph: fp32, fp16, int8-cpu, int8-tensorrt."""
        return f"{self.precision}-{self.target}" if self.precision == "int8" else self.precision


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One artefact of the ladder: the same test images through it, held against torch."""

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
    """A named check on a result: the measured value, the bound it must keep, and whether it did."""

    name: str
    value: float
    bound: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What an int8 graph loses against fp32 on the same n images of val: points, with a paired 95 % interval.

    `differ` is the share of all `images` looked at, labeled or not, on which the two give different labels, in percent.
    """

    points: float
    low: float
    high: float
    n: int
    differ: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """What the accuracy guard found for a target: the loss, whether it is within the bound, and what stays float.

    `floats` are the layers kept in float for it, worst first. `qat` is the share of equal labels of the graph and the
    fake-quantized student, where it is trained so. `before` is the loss without either.
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
    """Which graph a target gets, and why. `ratio` is fp32's (fp16's) time over int8's, where it was measured."""

    target: Target
    artefact: str
    precision: Precision
    why: str
    ratio: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs in order (torch first), the gates held against them, and the images where they part."""

    rungs: tuple[Rung, ...]
    gates: tuple[Gate, ...]
    worst: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Device:
    """An entry of deploy/devices.yaml; `transport` is "local" or "ssh", `python` the interpreter on the device.

    `backends` are what the device is there for: what bench takes where nobody says, and what `devices` expects.
    """

    name: str
    transport: str = "local"
    host: str = ""
    python: str = ""
    workdir: str = ""
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Closed-loop latency: every sample kept, percentiles derived. `window` says what the timed window holds."""

    samples_ms: tuple[float, ...]
    warmup_ms: tuple[float, ...]
    window: str
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What an image cost in millijoules, by which meter, and what that meter covers, idle power included."""

    mj_per_image: float
    meter: str
    covers: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What one device said of one artefact on one backend in one mode of measuring (agent/backends.py).

    `latency` has no samples where the answers were not those of the host: `warnings` says so. `verdict` is "quiet", or
    "noisy" with its causes and remedies.
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
    def called(self) -> str:
        """The artefact, with the mode where it is another than host to host."""
        return self.artefact if self.mode == HOST_TO_HOST else f"{self.artefact}, {self.mode}"


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """What a builder's log says of an engine's layers.

    `types` counts them by precision. `weighted` is the precision of every ONNX node with weights, by name. Of the
    graph's `pairs`, its Q and DQ nodes of activations, `unfused` have a kernel to themselves, and the log does not
    speak of those in `unknown`.
    """

    total: int
    types: dict[str, int]
    weighted: dict[str, str]
    pairs: int
    unfused: tuple[str, ...]
    unknown: tuple[str, ...]

    def share(self, precision: str) -> float:
        """The share of the layers in a precision."""
        return self.types.get(precision, 0) / self.total


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine built ahead of time of one graph for one compute capability ("sm89"), for batches of `batch` alone.

    `path` is the file beside this record; where there is none, `failed` says why. `seconds` are the whole builder's.
    `layers` is None where its log lists none.
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
