"""The frozen records that are passed between steps.

Plain data, written and read by `run.files`. Names have the units; fractions are in [0, 1]; scores have own scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "fp16", "int8"]
Target = Literal["any", "cpu", "tensorrt", "ncnn"]
Commercial = Literal["yes", "with conditions", "no", "not stated"]
# of a field that was added later: it is not written while it has its default, so that the file's hash stays what it was
OMITTED_AT_DEFAULT = {"omitted at default": True}


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
    """The sources' weights, which are >= 0 and sum to 1; `metric` is the metric that they are computed from.

    `features_only` names the sources without classes, `blind` those of no weight as they are not told from chance.
    """

    metric: str
    probe_images: int
    power: float
    sources: tuple[SourceWeight, ...]
    disagreement: str = ""
    features_only: tuple[str, ...] = field(default=(), metadata=OMITTED_AT_DEFAULT)
    blind: tuple[str, ...] = field(default=(), metadata=OMITTED_AT_DEFAULT)

    @property
    def effective_sources(self) -> float:
        """Effective number of sources, 1 / sum(alpha^2)."""
        total = sum(source.weight**2 for source in self.sources)
        return 1.0 / total if total else 0.0

    @property
    def alphas(self) -> dict[str, float]:
        """Weight by source name."""
        return {source.name: source.weight for source in self.sources}

    @property
    def class_alphas(self) -> dict[str, float]:
        """Weight by source name, of the sources with classes alone: their weights are divided by their sum.

        They are uniform if all of them are 0.
        """
        if not self.features_only:
            return self.alphas
        alphas = {name: weight for name, weight in self.alphas.items() if name not in self.features_only}
        total = sum(alphas.values())
        return {name: weight / total if total else 1.0 / len(alphas) for name, weight in alphas.items()}


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
    """The student's teacher, a mixture of probes: accuracy on val (None with folds: val trains), and the shares."""

    kind: str
    val: Accuracy | None
    weights: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FoldScore:
    """A fold's student: its candidate, the number of labels that it was trained on, and its accuracy on the fold."""

    student: StudentSpec
    trained: int
    fp32: Accuracy
    int8: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Accuracy over all folds (`int8`: of the graphs for CPUs), with an interval that knows that students share labels.

    `labels`: that train what ships; `unscored`: classes that no fold scores; `temperature`: makes probabilities honest.
    """

    folds: tuple[FoldScore, ...]
    labels: int
    unscored: tuple[str, ...]
    fp32: Accuracy
    temperature: float
    int8: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A graph answers where its probability at `temperature` is `threshold` or more; with 0 it always answers."""

    temperature: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """When the graphs say "unknown": the rule of each by name, and what is expected of the default graph.

    `coverage` or `accuracy` is what the recipe asks for, neither if it asks for no threshold. `labels` are the labeled
    images that the rules are fitted on; `matched` the images without a label on which they were carried over from the
    folds' students, 0 where they were not. `answered` is the share of `expected_on` images that is answered, and
    `shares` the share of each class among the answers. `scored` is the rule of the answers that the report shows: the
    default graph's on the test images, or that of the folds' students.
    """

    coverage: float | None
    accuracy: float | None
    labels: int
    matched: int
    rules: dict[str, Rule]
    scored: Rule
    answered: float
    expected_on: int
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained student on disk; `path` is relative to the run. With folds `test` is out of fold, and `val` is None."""

    path: str
    sha256: str
    spec: StudentSpec
    classes: tuple[str, ...]
    val: Accuracy | None
    test: Accuracy
    method: str
    steps: int
    train_seconds: float
    teacher: TeacherScore | None = None
    falling: float | None = None  # by what share the loss fell over the last fifth of the steps, where that shows


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What distilling gains over another classifier on the same n images, in points, with a paired 95 % interval."""

    points: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What distilling bought: the student against the same one trained on labels alone, and against a linear probe.

    Accuracies and gains are those of the test images; with folds, out of fold. `ships` is the student that is exported,
    and `why` says so in a sentence. `on_val` is the gain over labels alone on val, which decides where there are no
    folds. The probe is fitted on the features of `source`, the one of largest weight; None without sources.
    """

    ships: Literal["distilled", "labels alone"]
    why: str
    distilled: Accuracy
    labels_alone: Accuracy
    over_labels_alone: Gain
    on_val: Gain | None = None
    source: str = ""
    probe: Accuracy | None = None
    over_probe: Gain | None = None


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """An ONNX graph on disk, for "ncnn" a .zip. `images`: uint8 [B, px, px, 3] in RGB; `logits`: float32 [B, C]."""

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
        """Name of this graph in rungs, bundles and benches: fp32, fp16, int8-cpu, int8-tensorrt, fp32-ncnn."""
        return f"{self.precision}-{self.target}" if {"int8", "ncnn"} & {self.precision, self.target} else self.precision


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
    """Accuracy loss of an int8 graph against fp32 on the same n images, in points.

    For the `unlabeled` the loss is expected from calibrated probabilities; the `trained` trained the student. The 95 %
    interval is of what n labels would show; the true loss is above `shown` with a certainty of 90 %. `differ` is the
    percentage of all `images` that get another label. With `agreement` fp32's labels are the truth.
    """

    points: float
    low: float
    high: float
    n: int
    differ: float
    images: int
    unlabeled: int = field(default=0, metadata=OMITTED_AT_DEFAULT)
    trained: int = field(default=0, metadata=OMITTED_AT_DEFAULT)
    shown: float | None = None
    agreement: bool = field(default=False, metadata=OMITTED_AT_DEFAULT)

    @property
    def least(self) -> float:
        """The loss that is shown; of records without it, the lower end of the interval."""
        return self.low if self.shown is None else self.shown


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """The accuracy guard's outcome for a target: the loss, whether it is within the bound, and the layers in float.

    `floats` are these layers, worst first: the fastest of `sets` sets of layers that hold the bound, if they were
    `timed`, else the cheapest. `qat` is the share of images on which the graph and the fake-quantized
    student predict the same label, if it was trained so. `before` is the loss without either.
    """

    target: Target
    holds: bool
    max_drop: float
    drop: Drop
    floats: tuple[str, ...] = ()
    before: Drop | None = None
    qat: float | None = None
    sets: int = field(default=1, metadata=OMITTED_AT_DEFAULT)
    timed: bool = field(default=False, metadata=OMITTED_AT_DEFAULT)


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
class LicensedInput:
    """One input of a student and its license: "data", "unlabeled data", "source" or "initial weights".

    An input of a run that is a source has that source's name before its own: "digits-net/digits". `licence` is the
    publisher's wording, "not stated" where nobody says; `commercial` is what that wording says about commercial use.
    """

    what: str
    name: str
    licence: str
    commercial: Commercial


@dataclass(frozen=True, kw_only=True)
class MoreLabels:
    """What the next labels are worth to the teacher, in points of top-1 accuracy, with a 95 % interval.

    Attributes:
        labels, next: number of labels that there are, and of further ones.
        biased: whether it was measured on labels that were not drawn at random.
        gain: what the next labels are worth; None where there are too few labels to tell.
        low, high: its interval.
    """

    labels: int
    next: int
    biased: bool = False
    gain: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def goes_on(self) -> bool:
        """Whether more labels may pay: the upper end exceeds one point, or nothing can be told."""
        return self.high is None or self.high > 1.0

    @property
    def text(self) -> str:
        """The answer in one line."""
        if self.gain is None or self.low is None or self.high is None:
            return f"do more labels pay? {self.labels} labels are too few to tell: label more"
        answer = "they pay" if self.low > 1.0 else "cannot tell: label more" if self.goes_on else "they no longer pay"
        basis = ", measured on labels that were not drawn at random" if self.biased else ""
        return (
            f"do more labels pay? The next {self.next} are worth {self.gain:+.1f} points [{self.low:+.1f}, "
            f"{self.high:+.1f}] to the teacher{basis}: {answer}"
        )
