"""What a profile fixes: the student, the schedule, the bank, the methods and their settings, the same for every target.

A profile is a YAML file beside this one. What a cell of the table depends on enters its `config` hash, so that lines
made under different settings are never averaged.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, model_validator

from benchmarks.suite.subsets import Subset
from edgedistill.distill import head_start, peer, tuning
from edgedistill.distill.methods import METHODS
from edgedistill.distill.teachers import TEACHERS, TUNED_VERSION
from edgedistill.errors import InputError
from edgedistill.recipe.options import LATER, did_you_mean, options_for_key, with_defaults
from edgedistill.recipe.schema import Distill, Weigh
from edgedistill.recipe.section import without_later
from edgedistill.run.files import digest
from edgedistill.similarity.chance import OFF
from edgedistill.similarity.metrics import METRICS

HERE = Path(__file__).parent
# what a row means that is older than a default: its lines stay what they are
FORMER: dict[str, Any] = {"head_start": "random", "peer": False}
FORMER_LEVEL = OFF
OWN_KEYS = ("prior", "level", "weigh", "sources", "labels")  # of a row, beside those of a recipe's `distill`
Knowledge = Literal["none", "labels", "shares"]
RECIPES = HERE.parents[1] / "recipes/sources"
BANK = ("packs", "ready", "finetuned", "weigh")  # what a method without sources does not depend on


class Profile(BaseModel):
    """One way to run the suite.

    Attributes:
        name: of the file, and of the lines.
        packs: pack -> its directory, where that has another name.
        subsets: pack -> the classes of another pack that it is made of.
        bank_in_every_config: whether the sources enter the configuration of methods that use none, too.
        store_px: side of the stored squares; students and sources see them resized.
        student: family and its options, input_px among them.
        initial: the pack that the student's initial weights are trained on ("" for the family's own), and the steps.
        ready: sources that need no training, as a recipe names them.
        finetuned: packs that a source is fine-tuned on, and for how many steps.
        labels_per_class: labels a class; `default` for the targets that are not named.
        labeled: "balanced", or "natural": as many labels in all, drawn as they come; a class may be left without.
        targets: what is reported.
        tuning: packs on which settings were chosen; none of them is reported.
        weigh: how similarity becomes weight.
        distill: the schedule, the same for every method.
        methods: per method what differs from `distill`; `prior` says what it knows about the classes' shares.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    packs: Annotated[dict[str, str], LATER] = {}
    subsets: Annotated[dict[str, Subset], LATER] = {}
    bank_in_every_config: Annotated[bool, LATER] = True
    store_px: PositiveInt
    student: dict[str, Any]
    initial: str
    initial_settings: dict[str, Any] = {}
    ready: dict[str, dict[str, Any]]
    finetuned: dict[str, int]
    labels_per_class: dict[str, int]
    labeled: Annotated[Literal["balanced", "natural"], LATER] = "balanced"
    targets: tuple[str, ...]
    tuning: tuple[str, ...]
    weigh: Weigh
    distill: dict[str, Any]
    methods: dict[str, dict[str, Any]]

    @model_validator(mode="after")
    def _no_initial_weights_know_a_target(self) -> Profile:
        if known := [name for name, subset in self.subsets.items() if subset.pack == self.initial]:
            raise ValueError(f"the initial weights are trained on the labels of {', '.join(known)}")
        return self

    def labels(self, target: str) -> int:
        """Labels a class of a target."""
        return self.labels_per_class.get(target, self.labels_per_class["default"])

    def settings(self, method: str, target: str, seed: int) -> Distill:
        """The distill section of one cell; `single:<source>` is of that source, `random` draws one for each target."""
        kind, _, source = method.partition(":")
        changed = {name: setting for name, setting in self.methods[kind].items() if name not in OWN_KEYS}
        if source:
            changed["method"] = {**changed["method"], "source": source}
        if kind == "random":
            changed["method"] = {**changed["method"], "seed": zlib.crc32(f"{target}/{seed}".encode())}
        return Distill.model_validate({**FORMER, **self.distill, **changed})

    def knowledge(self, method: str) -> Knowledge:
        """What a method knows about the prior: nothing, what its labels tell, or the shares in the target's pack."""
        return TypeAdapter(Knowledge).validate_python(self.methods[method.partition(":")[0]].get("prior", "none"))

    def level(self, method: str) -> float:
        """Level of the test that gives a source which is not told from chance no share, in the row of a method."""
        return float(self.methods[method.partition(":")[0]].get("level", FORMER_LEVEL))

    def weighing(self, method: str) -> Weigh:
        """How similarity becomes weight in the row of a method, which may say what differs from the profile's."""
        changed = self.methods[method.partition(":")[0]].get("weigh", {})
        return Weigh.model_validate({**self.weigh.model_dump(), **changed, "level": self.level(method)})

    def sources(self, method: str) -> Literal["all", "best", "own"] | int:
        """Which sources a row's method has: all, the best one by the weights, the student's own initial backbone
        alone, or so many of them in an order that the target and the seed draw."""
        row = self.methods.get(method.partition(":")[0], {})
        return TypeAdapter(Literal["all", "best", "own"] | int).validate_python(row.get("sources", "all"))

    def times(self, method: str) -> int:
        """How many times the profile's labels a row has."""
        return int(self.methods.get(method.partition(":")[0], {}).get("labels", 1))

    def uses_sources(self, cell: str) -> bool:
        """Whether a cell's method learns from sources."""
        return METHODS[self.settings(cell.partition(":")[0], "", 0).method.name].uses_sources

    def config(self, cell: str) -> str:
        """sha256 of all that a line depends on besides target and seed; `draw` is the line about the sources.

        Defaults that the profile leaves out count as if they were written, and so do the recipes of the sources. Keys
        and options that were added later (recipe.options.Later) count only where they differ from their default, and
        versions of methods, teachers and metrics only from the second on: so committed lines stay what they are.
        """
        plain = self.model_dump(mode="json", exclude={"name", "methods", "targets", "tuning", "distill"})
        shared = without_later(self, plain)
        shared["recipes"] = [(RECIPES / f"{name}.yaml").read_text(encoding="utf-8") for name in ("pack", "micro")]
        shared.pop("bank_in_every_config", None)
        if cell == "draw":
            kinds = {name: TEACHERS[choice["name"]] for name, choice in self.teachers.items()}
            teachers = {name: written_out(kinds[name].fit, choice) for name, choice in self.teachers.items()}
            metrics = (self.weigh.metric, *self.weigh.also)
            versions = {f"teacher {name}": kind.version for name, kind in kinds.items()}
            versions |= {f"metric {metric.name}": METRICS[metric.name].version for metric in metrics}
            return digest([shared, teachers, *raised(versions)])
        if self.bank_in_every_config or self.uses_sources(cell):
            del shared["weigh"]["also"], shared["weigh"]["bootstrap"]  # opinions and intervals, no weights
        else:
            shared = {name: content for name, content in shared.items() if name not in BANK}
            shared["recipes"] = shared["recipes"][1:] if self.initial else []
        kind, _, source = cell.partition(":")
        settings = self.settings(f"{kind}:every" if source else kind, "", 0)
        method, teacher = METHODS[settings.method.name], TEACHERS[settings.teacher.name]
        unused = {"method", "teacher", "checkpoint_every", "evaluate_every", *FORMER}
        unused |= set() if "weak" in method.needs else {"strong"}
        choices = [written_out(method.loss, settings.method.model_dump()), None]
        versions = {"method": method.version}
        by_similarity = settings.teacher.name == "similarity" and "teacher" in method.needs
        if "sources" in method.needs or by_similarity or self.sources(cell) == "best":
            versions["metric"] = METRICS[self.weighing(cell).metric.name].version
        if "teacher" in method.needs:
            choices[1] = written_out(teacher.fit, settings.teacher.model_dump())
            versions["teacher"] = teacher.version
            if settings.teacher.options.get("tuned"):
                versions |= {"tuning": tuning.VERSION, "tuned teacher": TUNED_VERSION}
        if settings.head_start != FORMER["head_start"]:
            versions["head start"] = head_start.VERSION
        if settings.peer:
            versions |= {"peer": peer.VERSION, "transfer": METHODS["transfer"].version}
        newer = {name: getattr(settings, name) for name, former in FORMER.items() if getattr(settings, name) != former}
        if method.uses_sources and self.level(cell) != FORMER_LEVEL:
            newer["level"] = self.level(cell)
        if "sources" in method.needs and (row := self.methods[kind].get("weigh")):
            newer["weigh"] = row
        newer |= {"sources": self.sources(cell)} if self.sources(cell) != "all" else {}
        newer |= {"labels": self.times(cell)} if self.times(cell) > 1 else {}
        known = [] if self.knowledge(cell) == "none" else [{"prior": self.knowledge(cell)}]
        return digest(
            [shared, settings.for_key(exclude=unused), *choices, *raised(versions), *known, *filter(None, [newer])]
        )

    @property
    def has_peers(self) -> bool:
        """Whether the teacher of a row has a peer."""
        return any(row.get("peer") for row in self.methods.values())

    @property
    def teachers(self) -> dict[str, dict[str, Any]]:
        """Every teacher that a method learns from, by name, without the sources that it may tune."""
        choices = [settings["teacher"] for settings in self.methods.values() if "teacher" in settings]
        return {choice["name"]: choice for choice in choices if not choice.get("tuned")}


def written_out(function: Callable[..., Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice by name with the defaults of the function's options in place, as it enters a configuration."""
    written = options_for_key(function, with_defaults(function, choice))
    return {name: option for name, option in written.items() if name != "level"}  # it is the row's


def raised(versions: Mapping[str, int]) -> list[dict[str, int]]:
    """The versions above the first, in a list; an empty list where there are none."""
    above = {name: version for name, version in versions.items() if version > 1}
    return [above] if above else []


def load(name: str) -> Profile:
    """The profile benchmarks/suite/<name>.yaml; one that says `base` takes over what it does not say itself.

    Raises:
        InputError: there is no such profile.
    """
    names = [path.stem for path in HERE.glob("*.yaml")]
    if name not in names:
        raise InputError(f"no profile is called {name}{did_you_mean(name, names)}")
    return Profile.model_validate({"name": name, **_settings(name)})


def _settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    base = settings.pop("base", None)
    return {**_settings(base), **settings} if base else settings
