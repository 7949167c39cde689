"""The whole recipe schema, and how a recipe file becomes a checked `Recipe`.

A recipe is plain YAML. Where something is chosen by name (a data kind, a source kind, a metric, a method) the
options of the chosen function stand beside the name, and are checked against its signature before any work starts.
Paths in a recipe are relative to the recipe file.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic import ValidationError as PydanticError

from edgedistill import presets
from edgedistill.options import Key, Problem, bound_options, choose, did_you_mean, option_problems
from edgedistill.records import InputError

# what binds names and options belongs to the recipe for those who use it
__all__ = ["Key", "Problem", "Recipe", "RecipeError", "bound_options", "choose", "did_you_mean", "option_problems"]

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


class Budget(Section):
    """Upper bounds on the student; what is left out is not bounded. `macs_m` and `params_m` in millions."""

    macs_m: PositiveFloat | None = None
    params_m: PositiveFloat | None = None
    weights_mb: PositiveFloat | None = None


class Student(Section):
    """The space that the search looks through: per family, the choices of each of its options."""

    families: dict[str, dict[str, Any]] = Field(min_length=1)
    budget: Budget = Budget()


class Search(Section):
    """A short distillation per candidate; `trials` counts candidates that were trained to the end."""

    trials: PositiveInt = 8
    steps: PositiveInt = 100


class Augment(Section):
    """What happens to a training image: random resized crop (area from `min_area`), flips, brightness and contrast."""

    min_area: float = Field(default=0.5, gt=0.0, le=1.0)
    hflip: bool = True
    vflip: bool = False
    jitter: float = Field(default=0.2, ge=0.0, lt=1.0)


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
    checkpoint_every: PositiveInt = 50
    evaluate_every: PositiveInt = 50


class Export(Section):
    """torch to ONNX, and the gates that the fp32 graph must pass."""

    opset: int | None = Field(default=None, ge=17, le=23)
    min_agreement: float = Field(default=1.0, ge=0.0, le=1.0)
    max_relative_error: PositiveFloat = 1e-3


class Quantize(Section):
    """int8 graphs from one calibration on images of train only."""

    enabled: bool = True
    targets: tuple[Literal["cpu", "tensorrt"], ...] = ("cpu", "tensorrt")
    calibration_images: PositiveInt = 500
    method: Literal["minmax", "percentile", "entropy"] = "minmax"


class Bench(Section):
    """Where and how long to measure; every variant runs for `samples` queries and `seconds` at least."""

    devices: tuple[str, ...] = ("local",)
    inventory: str | None = None
    backends: tuple[str, ...] = ("onnxruntime-cpu",)
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
        """The named sections as plain JSON, defaults filled in: what a step's key is made from."""
        whole = self.model_dump(mode="json")
        return {name: whole[name] for name in names}


SECTIONS_TO_DISTILL = ("name", "seed", "data", "sources", "weigh", "student", "search", "distill")


class RecipeError(InputError):
    """Every problem of a recipe at once, a line each: `file:line: field: what, and the fix`."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Document:
    """A recipe as written: plain data, the line of every key; values given by --set and the preset are in place."""

    path: Path
    raw: dict[str, Any]
    lines: Mapping[Key, int]
    overridden: frozenset[Key] = frozenset()

    @property
    def base(self) -> Path:
        """The folder that the recipe's relative paths start from."""
        return self.path.resolve().parent

    def line(self, key: Key) -> int:
        """The line of a key; one that is not in the file borrows the line of the nearest one above it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def describe(self, problem: Problem) -> str:
        """`file:line: field: what`, whatever the keys and values hold."""
        field = _one_line(".".join(str(part) for part in problem.key) or "recipe")
        message = _one_line(problem.message)
        if any(problem.key[: len(key)] == key for key in self.overridden):
            return f"--set {field}: {message}"
        return f"{self.path}:{self.line(problem.key)}: {field}: {message}"

    def error(self, problems: Sequence[Problem]) -> RecipeError:
        """The problems as one error, in the order of the file, each once."""
        ordered = sorted(dict.fromkeys(problems), key=lambda one: self.line(one.key))
        return RecipeError([self.describe(problem) for problem in ordered])


def read(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe file, apply `key.path=value` overrides (values in YAML), and fill in the preset it names.

    Raises:
        RecipeError: the file is missing, is not YAML, or an override is not of the form key=value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
        lines = dict(_lines(node, ()))
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read ({error.strerror}); name an existing recipe file"]) from None
    except UnicodeDecodeError:
        raise RecipeError([f"{path}: is not text in UTF-8; is it a recipe?"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        what = _one_line(str(getattr(error, "problem", error)))
        raise RecipeError([f"{path}:{line}: not valid YAML: {what}"]) from None
    except RecursionError:
        raise RecipeError([f"{path}:1: not valid YAML: nested too deeply"]) from None
    except ValueError as error:  # PyYAML lets a date such as 2024-99-99 through to datetime
        raise RecipeError([f"{path}:1: not valid YAML: {error}; quote what is meant as text"]) from None
    if not isinstance(raw, dict):
        raise RecipeError([f"{path}:1: recipe: must be a mapping of sections, starting with `name:`"])
    keys = [_override(raw, text) for text in overrides]
    return Document(path, *presets.fill(raw, lines), frozenset(keys))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _lines(node: yaml.Node | None, key: Key) -> Iterable[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield (*key, name.value), name.start_mark.line + 1
            yield from _lines(value, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, index), value.start_mark.line + 1
            yield from _lines(value, (*key, index))


def _override(raw: dict[str, Any], text: str) -> Key:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError([f"--set {text}: must be key=value, for example --set distill.steps=200"])
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in name.split(".")]
    place: Any = raw
    try:
        for part in parts[:-1]:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        place[parts[-1]] = yaml.safe_load(value)
    except (TypeError, IndexError, AttributeError):
        raise RecipeError([f"--set {text}: the recipe has no such place; give an existing list index or key"]) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError([f"--set {text}: the value is not valid YAML"]) from None
    return tuple(parts)


def validate(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or everything the schema has against it."""
    unknown = presets.problems(document.raw)
    try:
        recipe = Recipe.model_validate(document.raw)
    except PydanticError as error:
        return None, unknown + [_problem(detail) for detail in error.errors()]
    names = [source.name for source in recipe.sources]
    twice = [Problem(("sources", at, "name"), f"{name} is used twice; give every source a name of its own")
             for at, name in enumerate(names) if name in names[:at]]  # fmt: skip
    return recipe, unknown + twice


def _problem(detail: Any) -> Problem:
    key = tuple(part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    if detail["type"] == "extra_forbidden":
        return Problem(key, f"unknown key{did_you_mean(str(key[-1]), _fields(key[:-1]))}")
    if detail["type"] == "missing":
        return Problem(key, "is required")
    got = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
    return Problem(key, detail["msg"][0].lower() + detail["msg"][1:] + got)


def _fields(key: Key) -> list[str]:
    """The fields of the section at `key`, found through the sections' default or annotated types."""
    model: Any = Recipe
    for part in key:
        annotation = model.model_fields[part].annotation if isinstance(part, str) else None
        if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
