"""The recipe schema. file.py reads a file into a `Recipe`.

Where something is chosen by name (a data kind, a source kind, a metric, a method) the options of the chosen function
stand beside the name, and are checked against its signature before any work starts. The text below a field is its line
in the recipe reference (docs/recipe.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from edgedistill.recipe import presets
from edgedistill.recipe.data_section import Data, Unlabeled
from edgedistill.recipe.options import LATER, NOTE
from edgedistill.recipe.section import Choice, License, Name, NamedChoice, Open, Section


class Source(Open):
    """A frozen model from another domain, with its own preprocessing and its own input size."""

    name: Name
    """Its name in weights, tables and logs."""
    kind: str
    """Where the model comes from: `timm`, `pypi`, `weights`, `run`, `onnx`, `text` or `auto`."""
    input_px: int | None = Field(default=None, ge=1, le=4096)
    """Its input size in pixels, where it is not the model's own."""
    mean: tuple[float, float, float] | None = None
    """Mean of its normalization (RGB, in [0, 1]), where it is not the model's own."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Standard deviation of its normalization, where it is not the model's own."""
    license: Annotated[License | None, NOTE] = None
    """License of its weights, such as `Apache-2.0`, instead of the one that their publisher states; `own`: nobody else
    has rights in them."""


class Weigh(Section):
    """How similarity becomes the weights of the sources."""

    metric: NamedChoice = Choice(name="probe")
    """The similarity metric that decides the weights."""
    also: tuple[NamedChoice, ...] = (Choice(name="parc"),)
    """Further metrics that are computed and reported; they do not change the weights."""
    power: float = Field(default=12.0, ge=0.0)
    """Exponent of the rescaled scores: 0 weights all sources alike, large values take the best alone."""
    rescale: Literal["ceiling", "minmax"] = "ceiling"
    """`ceiling`: scores as shares of a perfect source's score; `minmax`: the worst source gets 0, the best gets 1."""
    bootstrap: int = Field(default=50, ge=2)
    """Number of half-samples of the labeled images from which the intervals of the scores are computed."""
    level: Annotated[float, Field(gt=0.0, le=1.0), LATER] = 0.05
    """A source whose leave-one-out answers cannot be told from chance at this level, over all sources, has weight 0; if
    none can, the weights stay as they are. `1`, and `rescale: minmax`: no test."""
    alike: Annotated[Literal["each", "once"], LATER] = "each"
    """Sources that are nearly the same (their errors correlate at 0.95): `each` has its weight, or they share
    what one of them would have, `once`."""

    @model_validator(mode="after")
    def _one_score_a_metric(self) -> Weigh:
        others = () if self.also == type(self).model_fields["also"].default else (*self.also, self.metric)
        for entry in self.also:
            if any(other.name == entry.name and other != entry for other in others):
                raise ValueError(f"also: {entry.name} is there twice with different options; a metric has one score")
        return self


class LatencyBound(Section):
    """An upper bound on the latency of one image, measured on a device."""

    at_most: PositiveFloat
    """The bound in milliseconds."""
    device: str = "local"
    """A device of the inventory."""
    backend: str = "onnxruntime-cpu"
    """The backend that runs the candidate there; `any`: the fastest of `onnxruntime-cpu` and `openvino` there."""
    precision: Literal["fp32", "int8"] = "int8"
    """The precision of the candidate's graph."""
    percentile: float = Field(default=50.0, gt=0.0, lt=100.0)
    """The percentile of the latencies that must meet the bound."""


def _at_most(bound: Any) -> Any:
    return {"at_most": bound} if isinstance(bound, int | float) and not isinstance(bound, bool) else bound


class Budget(Section):
    """Upper bounds on the student; what is left out is not bounded."""

    macs_m: PositiveFloat | None = None
    """Multiply-accumulates of one image, in millions."""
    params_m: PositiveFloat | None = None
    """Parameters, in millions."""
    weights_mb: PositiveFloat | None = None
    """Size of the weights in fp32, in megabytes; int8 takes a quarter."""
    activation_mb: PositiveFloat | None = None
    """Peak size of the activations of one image in fp32, in megabytes; int8 takes a quarter."""
    latency_ms: Annotated[LatencyBound | None, BeforeValidator(_at_most)] = None
    """Latency of one image in milliseconds, measured before a candidate trains: a number, or the keys below."""


def _or_empty(options: Any) -> Any:
    """The options of a family: in YAML `micro:` alone has none."""
    return {} if options is None else options


class Student(Section):
    """The space that the search looks through."""

    families: dict[str, Annotated[dict[str, Any], BeforeValidator(_or_empty)]] = Field(
        default={"efficientnet_lite": {}}, min_length=1
    )
    """Family -> its options; an option takes one value or a list of choices. Every family also takes `input_px`, the
    input size in pixels (default `[64, 96, 128]`)."""
    budget: Budget = Budget()
    """Upper bounds on the student."""


class Search(Section):
    """The search: a short distillation of each candidate, compared on val."""

    trials: PositiveInt = 8
    """Number of candidates that are trained to the end of the short distillation; pruned ones do not count."""
    steps: PositiveInt = 100
    """Steps of the short distillation."""
    rungs: int = Field(default=0, ge=0, le=5)
    """Successive halving: how often a candidate is compared with the others during its training; 0: never."""
    keep_one_in: int = Field(default=2, ge=2, le=10)
    """At each comparison the best 1 in this many continue; the others are pruned."""
    objective: Literal["fp32", "int8"] = "fp32"
    """The accuracy that counts: the student's, or that of its int8 graph."""
    # where a study is kept does not change it: it names no run directory and enters no key
    storage: str | None = Field(default=None, exclude=True)
    """Address of a database that several workers share, `postgresql://...`; without it a file in the run."""
    heartbeat_s: PositiveInt = Field(default=30, exclude=True)
    """Seconds between two heartbeats of a worker; after three missed ones another worker retries its candidate."""


class Augment(Section):
    """Augmentation of the training images: crops, flips, brightness and contrast."""

    min_area: float = Field(default=0.5, gt=0.0, le=1.0)
    """Least share of the image's area that a random crop keeps."""
    hflip: bool = True
    """Flip left and right at random."""
    vflip: bool = False
    """Flip top and bottom at random."""
    jitter: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Largest change of brightness and contrast."""


class Strong(Section):
    """The strong view of the consistency methods: RandAugment, then Cutout; crops and flips come on top."""

    ops: int = Field(default=2, ge=0, le=8)
    """Operations of RandAugment for each image."""
    magnitude: int = Field(default=10, ge=0, le=30)
    """Magnitude of the operations, from 0 to 30."""
    cutout: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest side of the square that is cut out, as a share of the image's side."""


class Distill(Section):
    """The training of the student: AdamW with a cosine schedule; the averaged (EMA) weights are kept."""

    method: NamedChoice = Choice(name="auto")
    """The distillation method. `auto` is `{name: adapted, lam: 0.2}`, by default with the `selftrained` teacher;
    without sources it is `transfer`."""
    teacher: NamedChoice = Choice(name="selftrained")
    """How the sources' probes are mixed into a teacher, for `adapted`, `consistent` and `combined`."""
    peer: Annotated[bool, LATER] = False
    """Average the teacher's answers with those of the same student trained on labels alone, which is trained first and
    is the run's baseline, too. Two more trainings, each without one half of the labels, decide its share."""
    steps: PositiveInt | Literal["auto"] = 1000
    """Training steps; `auto`: twenty passes over the images, 400 steps at least; `minutes` may cut that down to 50."""
    minutes: Annotated[PositiveFloat, LATER] = 60.0
    """Time budget of `steps: auto`, in minutes on this machine, from a rough figure of its speed."""
    batch_labeled: PositiveInt = 16
    """Labeled images in a step."""
    batch_unlabeled: int = Field(default=32, ge=0)
    """Unlabeled images in a step, for the methods that use them."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    heads_rate: Annotated[PositiveFloat, LATER] = 1.0
    """Learning rate of the heads, as a multiple of the backbone's, which is `lr`."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Weight decay of matrices and convolutions; biases and batch norm have none."""
    ema_decay: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Decay of the averaged weights; it rises to this value over the first steps."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises to its peak."""
    freeze: tuple[str, ...] = ()
    """Names of modules of the student's backbone that keep their initial weights; batch statistics still change."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the student's forward pass; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    compile: Annotated[bool, LATER] = False
    """Compile the student's forward and backward pass by torch.compile; where torch cannot, the training says so and
    goes on without (docs/scale.md)."""
    augment: Augment = Augment()
    """Augmentation of the training images."""
    strong: Strong = Strong()
    """The strong view of `fixmatch` and `consistent`."""
    class_weights: Annotated[Literal["none", "balanced", "auto"], LATER] = "none"
    """Weights of the labels in the loss: `balanced` counts every class alike, however many labels it has; `auto` does
    where `data.score` is `balanced`."""
    head_start: Annotated[Literal["random", "ridge"], LATER] = "random"
    """The heads' weights before the first step: `ridge` is a closed-form ridge from the student's initial features, on
    the labels for the target's head and on the pseudo-labels for the sources'; `random` draws them from the seed."""
    checkpoint_every: PositiveInt = 50
    """Steps between two checkpoints; a killed run resumes from the last one."""
    evaluate_every: PositiveInt = 50
    """Steps between two evaluations on val."""


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


Capability = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


class Export(Section):
    """torch to ONNX, and the gates that the fp32 graph must pass."""

    opset: int | None = Field(default=None, ge=17, le=23)
    """ONNX opset; default: the exporter's own."""
    fp16: bool = True
    """Also write a float16 graph, for TensorRT."""
    engines: Annotated[tuple[Capability, ...], AfterValidator(_once)] = ("sm86", "sm89", "sm120")
    """GPU compute capabilities for which engines are built ahead of time, if tensorrt-rtx is installed."""
    ncnn: Annotated[bool, LATER] = False
    """Also convert the fp32 graph for ncnn (`pip install "edgedistill[ncnn]"`)."""
    min_agreement: float = Field(default=1.0, ge=0.0, le=1.0)
    """Least share of images that get the same label from the fp32 graph and torch; below it the gate fails."""
    max_relative_error: PositiveFloat = 1e-3
    """Largest allowed difference between the logits of the fp32 graph and of torch, as a share of the largest logit."""


class Qat(Section):
    """Quantization-aware distillation: more training steps in int8 arithmetic, otherwise as `distill` says."""

    steps: PositiveInt = 200
    """Training steps."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    ranges: Literal["learned", "frozen"] = "learned"
    """Activation ranges: learned with the weights (Esser et al., ICLR 2020), or those of the calibration."""


def _qat(setting: Any) -> Any:
    return {True: {}, False: None}[setting] if isinstance(setting, bool) else setting


class Quantize(Section):
    """int8 graphs from one calibration on images of train, and what must be true for int8 to be kept."""

    enabled: bool = True
    """Make int8 graphs."""
    targets: Annotated[tuple[Literal["cpu", "tensorrt"], ...], Field(min_length=1), AfterValidator(_once)] = (
        "cpu",
        "tensorrt",
    )
    """The runtimes for which an int8 graph is made; each needs its quantization in other places of the graph."""
    calibration_images: PositiveInt = 500
    """Images of train on which the ranges of activations are measured."""
    method: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    """Rule that gives the ranges; `auto` takes the one whose int8 graph agrees most often with fp32."""
    max_drop: float = Field(default=1.0, ge=0.0, le=100.0)
    """Percentage points of accuracy that int8 may lose; only a loss above it that is shown counts (docs/int8.md)."""
    min_speedup: PositiveFloat = 1.05
    """int8 is kept only if the whole 95 % interval of its speed-up is above this; a target that this machine cannot run
    is not timed."""
    qat: Annotated[Qat | None, BeforeValidator(_qat)] = None
    """Quantization-aware distillation: `true`, or the keys below."""


class Unknown(Section):
    """What the threshold holds below which a student says "unknown"; one of the two."""

    coverage: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None
    """Share of the pictures of its classes that it answers: the least sure ones are unknown."""
    accuracy: Annotated[float | None, Field(gt=0.0, le=1.0)] = None
    """Accuracy (top-1) of its answers, for as large a share as has it."""

    @model_validator(mode="after")
    def _one(self) -> Unknown:
        if (self.coverage is None) == (self.accuracy is None):
            raise ValueError("takes coverage or accuracy, one of the two, such as {coverage: 0.9}; or false")
        return self


ANSWERED = 0.9


def _unknown(setting: Any) -> Any:
    return {True: {"coverage": ANSWERED}, False: None}[setting] if isinstance(setting, bool) else setting


class Bundle(Section):
    """What the bundle for a device says."""

    unknown: Annotated[Unknown | None, BeforeValidator(_unknown)] = Unknown(coverage=ANSWERED)
    """When the student says "unknown" instead of a class: the keys below, `{coverage: 0.9}` where it is left out, or
    `false` for never."""


Mode = Literal["host-to-host", "compute", "host-to-host-graph", "compute-graph"]


Side = Annotated[int, Field(ge=1, le=10_000)]


class Bench(Section):
    """Where, how and how long to measure."""

    devices: tuple[str, ...] = ("local",)
    """Devices to measure on, by their names in the inventory."""
    inventory: str | None = None
    """The inventory's file; default: deploy/devices.yaml in the current folder, if it exists."""
    backends: tuple[str, ...] = ()
    """Backends to measure; default: those that the inventory names for the device, else `onnxruntime-cpu`."""
    modes: Annotated[tuple[Mode, ...], AfterValidator(_once)] = get_args(Mode)
    """What the timed window contains; a backend measures those modes that it supports."""
    offline: Annotated[tuple[PositiveInt, ...], AfterValidator(_once)] = ()
    """Batch sizes whose throughput is measured as well."""
    processes: int = Field(default=3, ge=1, le=1000)
    """Fresh processes, each of which measures every graph."""
    rounds: PositiveInt = 5
    """Rounds in a process; in each round every graph is timed in turn."""
    samples: PositiveInt = 300
    """Least number of timed queries of a graph in a mode, over all processes."""
    seconds: PositiveFloat = 2.0
    """Least time in seconds that a graph is timed for in a mode, over all processes."""
    threads: PositiveInt = 1
    """Threads of the runtime."""
    accuracy_images: PositiveInt = 500
    """Test images on which accuracy, and agreement with the host, are computed on the device."""
    picture: Annotated[tuple[Side, Side] | None, LATER] = (1280, 720)
    """Width and height of the pictures that are timed to their label, from a file and from a frame; null: none are."""


def _sources(sections: Any) -> Any:
    return [{"name": "auto", "kind": "auto"}] if sections == "auto" else sections


class Recipe(Section):
    """The whole recipe. The run directory's name has a hash of the sections up to `distill`, without `about`."""

    name: Name = "recipe"
    """The recipe's name; run directories begin with it. Default: the name of its file."""
    about: str = ""
    """One line for the report."""
    preset: str | None = None
    """A named group of settings of `weigh` and `distill` (`paper_style`); keys of the recipe take precedence."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the label draw, the initial weights, the batches, the augmentation and the search."""
    data: Data
    """The target task."""
    unlabeled: Unlabeled | None = None
    """More images without a label, in shards."""
    sources: Annotated[tuple[Source, ...], BeforeValidator(_sources)] = ()
    """The source models; `auto` is short for one source of kind `auto`, which stands for some of the catalog."""
    weigh: Weigh = Weigh()
    """How similarity becomes the weights of the sources."""
    student: Student = Student()
    """The student space and the budget."""
    search: Search = Search()
    """The search among the students."""
    distill: Distill = Distill()
    """The training of the student."""
    baseline: Annotated[bool, LATER] = True
    """Also train the student on labels alone, and fit a linear probe on the best source, to see what distilling bought.
    Under `method: auto` the student trained on labels alone ships where it is clearly better."""
    export: Export = Export()
    """The ONNX graphs and their gates."""
    quantize: Quantize = Quantize()
    """The int8 graphs and their guards."""
    bundle: Annotated[Bundle, LATER] = Bundle()
    """The bundle for a device."""
    bench: Bench = Bench()
    """The measurement on devices."""

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, raw: Any) -> Any:
        """`method: auto` becomes the method that it stands for (presets.py)."""
        return presets.resolved(raw) if isinstance(raw, dict) else raw

    def sections(self, names: Iterable[str]) -> dict[str, Any]:
        """The named sections as plain JSON, defaults filled in: what a step's key is made from.

        A section that may be left out, and is, changes no key.
        """
        sections = self.for_key()
        return {name: sections[name] for name in names if sections.get(name) is not None}


SECTIONS_TO_DISTILL = ("name", "seed", "data", "unlabeled", "sources", "weigh", "student", "search", "distill")
