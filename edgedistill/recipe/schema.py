"""The whole recipe schema; recipe_file.py makes a `Recipe` of a file.

Where something is chosen by name (a data kind, a source kind, a metric, a method) the options of the chosen function
stand beside the name, and are checked against its signature before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from edgedistill.recipe import presets
from edgedistill.recipe.options import Key, Problem, bound_options, choose, did_you_mean, option_problems

# what binds names and options belongs to the recipe for those who use it
__all__ = ["Key", "Problem", "Recipe", "bound_options", "choose", "did_you_mean", "option_problems"]

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A part of the recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Open(Section):
    """A part that names a function and holds that function's options beside the name."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that the schema leaves to the named function."""
        return dict(self.model_extra or {})


class Choice(Open):
    """`weighted`, or `{name: weighted, lam: 0.8}`."""

    name: str


NamedChoice = Annotated[Choice, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]


class Data(Open):
    """The target task: where its images are, how many labels may be used, and what counts as good."""

    kind: str
    labels_per_class: PositiveInt | None = None
    val_fraction: float = Field(default=0.2, gt=0.0, le=0.9)
    test_fraction: Fraction = 0.3
    score: Literal["top1", "balanced"] = "top1"
    fit: Literal["crop", "squash"] = "crop"
    store_px: PositiveInt | None = None


class Unlabeled(Section):
    """More images without a label, too many for a folder: WebDataset shards, streamed.

    `urls` are paths or addresses of tar files, with braces for many: shards/{0000..0099}.tar. They are read in the
    order of a shuffle, some shards at a time, `mixed` images at least; so many, and as many again, stand in memory.
    """

    kind: Literal["wds"]
    urls: str | tuple[str, ...]
    mixed: PositiveInt = 4096


class Source(Open):
    """A frozen model from another domain, with its own preprocessing and its own input size."""

    name: Name
    kind: str
    input_px: PositiveInt | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None


class Weigh(Section):
    """How similarity becomes weight: `metric` decides, `also` is printed beside it."""

    metric: NamedChoice = Choice(name="probe")
    also: tuple[NamedChoice, ...] = (Choice(name="parc"),)
    power: float = Field(default=12.0, ge=0.0)
    rescale: Literal["ceiling", "minmax"] = "ceiling"
    bootstrap: int = Field(default=50, ge=2)


class LatencyBound(Section):
    """At most so many milliseconds an image, at this percentile, in this precision, by this backend on this device."""

    at_most: PositiveFloat
    device: str = "local"
    backend: str = "onnxruntime-cpu"
    precision: Literal["fp32", "int8"] = "int8"
    percentile: float = Field(default=50.0, gt=0.0, lt=100.0)


def _at_most(value: Any) -> Any:
    return {"at_most": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Budget(Section):
    """Upper bounds on the student; what is left out is not bounded. `macs_m` and `params_m` in millions.

    `weights_mb` and `activation_mb` (the peak, for one image) are megabytes of fp32; int8 takes a quarter.
    `latency_ms`, a number or what LatencyBound takes, is measured on the device before a candidate trains.
    """

    macs_m: PositiveFloat | None = None
    params_m: PositiveFloat | None = None
    weights_mb: PositiveFloat | None = None
    activation_mb: PositiveFloat | None = None
    latency_ms: Annotated[LatencyBound | None, BeforeValidator(_at_most)] = None


class Student(Section):
    """The space that the search looks through: per family, the choices of each of its options."""

    families: dict[str, dict[str, Any]] = Field(min_length=1)
    budget: Budget = Budget()


class Search(Section):
    """A short distillation per candidate; `trials` counts candidates that were trained to the end.

    `rungs` is how often a candidate is compared with the others on its way there: at each, only the best of every
    `keep_one_in` go on (successive halving). `objective` says which accuracy on val counts: the student's, or that of
    its int8 graph. `storage` is the address of a database that several workers share (postgresql://...); a worker that
    says nothing for three times `heartbeat_s` seconds is taken for dead.
    """

    trials: PositiveInt = 8
    steps: PositiveInt = 100
    rungs: int = Field(default=0, ge=0, le=5)
    keep_one_in: int = Field(default=2, ge=2, le=10)
    objective: Literal["fp32", "int8"] = "fp32"
    # where a study is kept is none of its business: it names no run directory and is written into none
    storage: str | None = Field(default=None, exclude=True)
    heartbeat_s: PositiveInt = Field(default=30, exclude=True)


class Augment(Section):
    """What happens to a training image: random resized crop (area from `min_area`), flips, brightness and contrast."""

    min_area: float = Field(default=0.5, gt=0.0, le=1.0)
    hflip: bool = True
    vflip: bool = False
    jitter: float = Field(default=0.2, ge=0.0, lt=1.0)


class Strong(Section):
    """The strong view of consistency methods: RandAugment of `ops` operations at `magnitude` (of 31), then Cutout.

    `cutout` is the largest side of the square cut out, as a share of the image's. Crops and flips come on top.
    """

    ops: int = Field(default=2, ge=0, le=8)
    magnitude: int = Field(default=10, ge=0, le=30)
    cutout: float = Field(default=0.5, ge=0.0, le=1.0)


class Distill(Section):
    """The training run: the method, its length, and the optimiser (AdamW, cosine schedule, EMA weights kept).

    `teacher` is how the sources' probes are mixed, for the methods that distil in the target's own classes.
    `freeze` names modules of the student's backbone that keep their initial weights: with the first stages frozen a
    fine-tuning step takes half the time. `precision` is that of the student's forward pass: auto is bfloat16 on a GPU
    and float32 on a CPU, where bfloat16 pays for small dense convolutions and costs for depthwise ones.
    """

    method: NamedChoice = Choice(name="auto")
    teacher: NamedChoice = Choice(name="selftrained")
    steps: PositiveInt = 1000
    batch_labeled: PositiveInt = 16
    batch_unlabeled: int = Field(default=32, ge=0)
    lr: PositiveFloat = 1e-3
    weight_decay: float = Field(default=0.01, ge=0.0)
    ema_decay: float = Field(default=0.99, ge=0.0, lt=1.0)
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    freeze: tuple[str, ...] = ()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    augment: Augment = Augment()
    strong: Strong = Strong()
    checkpoint_every: PositiveInt = 50
    evaluate_every: PositiveInt = 50


def _once(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(given))


Capability = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


class Export(Section):
    """torch to ONNX, and the gates that the fp32 graph must pass. `fp16`: a float16 graph for TensorRT beside it.

    `engines`: the compute capabilities of GPUs that tensorrt-rtx, where it is installed, builds engines for.
    """

    opset: int | None = Field(default=None, ge=17, le=23)
    fp16: bool = True
    engines: Annotated[tuple[Capability, ...], AfterValidator(_once)] = ("sm86", "sm89", "sm120")
    min_agreement: float = Field(default=1.0, ge=0.0, le=1.0)
    max_relative_error: PositiveFloat = 1e-3


class Qat(Section):
    """Quantization-aware distillation: `steps` more steps with fake quantization, as `distill` says but for these.

    `ranges` are frozen at what calibration found, or learned with the weights (Esser et al., ICLR 2020).
    """

    steps: PositiveInt = 200
    lr: PositiveFloat = 1e-4
    ranges: Literal["learned", "frozen"] = "learned"


def _qat(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class Quantize(Section):
    """int8 graphs from one calibration on images of train only, and what must be true for int8 to be kept.

    `method: auto` takes the rule whose int8 graph answers most often as fp32 does on the calibration images. int8 is
    kept if it loses at most `max_drop` points on val, and if it is measurably more than `min_speedup` times as fast.
    """

    enabled: bool = True
    targets: Annotated[tuple[Literal["cpu", "tensorrt"], ...], Field(min_length=1), AfterValidator(_once)] = (
        "cpu",
        "tensorrt",
    )
    calibration_images: PositiveInt = 500
    method: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    max_drop: float = Field(default=1.0, ge=0.0, le=100.0)
    min_speedup: PositiveFloat = 1.05
    qat: Annotated[Qat | None, BeforeValidator(_qat)] = None


Mode = Literal["host-to-host", "compute", "host-to-host-graph", "compute-graph"]


class Bench(Section):
    """Where, how and how long to measure; every variant runs for `samples` queries and `seconds` at least.

    Without `backends` each device takes its own of the inventory. Of `modes` a backend takes those that it has;
    `offline` are batch sizes whose throughput is measured besides.
    """

    devices: tuple[str, ...] = ("local",)
    inventory: str | None = None
    backends: tuple[str, ...] = ()
    modes: Annotated[tuple[Mode, ...], AfterValidator(_once)] = get_args(Mode)
    offline: Annotated[tuple[PositiveInt, ...], AfterValidator(_once)] = ()
    processes: PositiveInt = 3
    rounds: PositiveInt = 5
    samples: PositiveInt = 300
    seconds: PositiveFloat = 2.0
    threads: PositiveInt = 1
    accuracy_images: PositiveInt = 500


class Recipe(Section):
    """What to do, whole. `SECTIONS_TO_DISTILL` of it name the run directory.

    `preset` is kept as a note: its values stand in the sections already (presets.py).
    """

    name: Name
    about: str = ""
    preset: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: Data
    unlabeled: Unlabeled | None = None
    sources: tuple[Source, ...] = ()
    weigh: Weigh = Weigh()
    student: Student
    search: Search = Search()
    distill: Distill = Distill()
    export: Export = Export()
    quantize: Quantize = Quantize()
    bench: Bench = Bench()

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, given: Any) -> Any:
        """`method: auto` becomes the method that it stands for (presets.py)."""
        return presets.resolved(given) if isinstance(given, dict) else given

    def sections(self, names: Iterable[str]) -> dict[str, Any]:
        """The named sections as plain JSON, defaults filled in: what a step's key is made from.

        One that may be left out, and is, changes no key.
        """
        whole = self.model_dump(mode="json")
        return {name: whole[name] for name in names if whole[name] is not None}


SECTIONS_TO_DISTILL = ("name", "seed", "data", "unlabeled", "sources", "weigh", "student", "search", "distill")
