"""Students: which candidates a recipe's families make, which fit the budget, and how a spec becomes a model.

In a recipe each option of a family (families.py) takes one value or a list of choices.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.recipe import Budget, Key, Problem, bound_options, did_you_mean, option_problems
from edgedistill.recipe import Student as StudentSection
from edgedistill.records import Cost, InputError, StudentSpec
from edgedistill.training import cost
from edgedistill.training.families import FAMILIES
from edgedistill.training.weights import fit_state, read_state

if TYPE_CHECKING:
    from torch import nn

DEFAULT_INPUT_PX = (64, 96, 128)


def problems(section: Mapping[str, Any], key: Key) -> list[Problem]:
    """What is wrong with the recipe's `student.families`: unknown families, unknown options, wrong choices."""
    found: list[Problem] = []
    for family, options in section.items():
        place = (*key, family)
        if family not in FAMILIES:
            found.append(
                Problem(key=place, message=f"no student family is called {family}{did_you_mean(family, FAMILIES)}")
            )
            continue
        given = dict(options) if isinstance(options, Mapping) else {}  # the schema says so where it is not
        for px in _choices(given.pop("input_px", DEFAULT_INPUT_PX)):
            if not isinstance(px, int) or isinstance(px, bool) or px < 8:
                found.append(
                    Problem(
                        key=(*place, "input_px"), message=f"must be whole numbers of pixels, 8 at least (got {px!r})"
                    )
                )
        empty = [name for name, value in given.items() if _choices(value) == ()]
        found += [Problem(key=(*place, name), message="must hold one choice at least") for name in empty]
        for one in _combinations({name: value for name, value in given.items() if name not in empty}):
            found += option_problems(FAMILIES[family], one, place)
    return list(dict.fromkeys(found))


def _choices(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _combinations(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    names = list(options)
    for values in itertools.product(*(_choices(options[name]) for name in names)):
        yield dict(zip(names, values, strict=True))


def candidates(section: StudentSection, num_classes: int) -> list[StudentSpec]:
    """Every student of the space with its cost, counted on the meta device: no weights are allocated.

    Raises:
        InputError: a family's options do not fit, or a candidate cannot take its input size.
    """
    found = []
    for family, given in section.families.items():
        options = dict(given or {})
        sizes = _choices(options.pop("input_px", DEFAULT_INPUT_PX))
        for one, px in itertools.product(_combinations(options), sizes):
            blueprint = FAMILIES[family](**bound_options(FAMILIES[family], one))
            counted = cost.measure(blueprint.build, px, num_classes)
            found.append(
                StudentSpec(
                    family=family,
                    options=one,
                    input_px=px,
                    num_classes=num_classes,
                    cost=counted,
                    mean=blueprint.mean,
                    std=blueprint.std,
                    initial_weights=blueprint.initial_weights,
                )
            )
    return found


def over_budget(counted: Cost, budget: Budget) -> dict[str, float]:
    """By what factor each bound that is counted is missed; empty for a feasible student. Latency is not counted."""
    bounds = budget.model_dump(exclude_none=True, exclude={"latency_ms"})
    return {name: getattr(counted, name) / bound for name, bound in bounds.items() if getattr(counted, name) > bound}


def feasible(found: list[StudentSpec], budget: Budget) -> list[StudentSpec]:
    """The candidates within the budget.

    Raises:
        InputError: none is; the message names the candidate that misses by least, and its cost.
    """
    kept = [spec for spec in found if not over_budget(spec.cost, budget)]
    if kept:
        return kept
    nearest = min(found, key=lambda spec: max(over_budget(spec.cost, budget).values()))
    missed = ", ".join(
        f"{name} {getattr(nearest.cost, name):.3g} (budget {getattr(budget, name):g})"
        for name in over_budget(nearest.cost, budget)
    )
    raise InputError(
        f"student.budget: no candidate meets it; the nearest is {describe(nearest)} with {missed}",
        "raise the budget, or offer a smaller family or input_px",
    )


def describe(spec: StudentSpec) -> str:
    """`efficientnet_lite variant=0 at 96 px`."""
    options = " ".join(f"{name}={value}" for name, value in spec.options.items() if name != "weights")
    return f"{spec.family} {options} at {spec.input_px} px".replace("  ", " ")


def reachable(spec: StudentSpec) -> str:
    """Why the candidate's initial weights cannot be had on this machine, and the fix; "" where they can."""
    return FAMILIES[spec.family](**bound_options(FAMILIES[spec.family], spec.options)).reachable()


def build(spec: StudentSpec, seed: int = 0, initialise: bool = False) -> nn.Module:
    """The student: float [B, 3, px, px], normalised, to logits [B, C]; `backbone` and `head` are its two parts.

    Args:
        spec: what to build.
        seed: of the random weights.
        initialise: load the family's initial weights into the backbone (else they stay random).
    """
    import torch
    from torch import nn

    blueprint = FAMILIES[spec.family](**bound_options(FAMILIES[spec.family], spec.options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = blueprint.build()
        head = nn.Linear(feature_width(backbone), spec.num_classes)
    if initialise and blueprint.initialise:
        blueprint.initialise(backbone)
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def feature_width(backbone: nn.Module) -> int:
    """D of the pooled features: timm's `head_hidden_size` where a net widens them after pooling (MobileNetV3, V4)."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def load(spec: StudentSpec, path: Path) -> nn.Module:
    """A trained student from its safetensors file, in eval mode.

    Raises:
        InputError: the file is missing or does not fit the spec.
    """
    model = build(spec)
    fit_state(model, read_state(path), str(path))
    return model.eval()
