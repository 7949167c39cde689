"""Source models: frozen, of any origin, each with its own input size and preprocessing.

A source kind is one function in SOURCES. Its keyword-only parameters are its recipe options. It returns a `Network`
from normalized float [B, 3, px, px] to features [B, D] and class probabilities [B, K], or None if it is headless.

N images of the target's train store, D features, K classes of the source.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from numpy.typing import NDArray

from edgedistill.distributed.device import default_device
from edgedistill.errors import InputError
from edgedistill.recipe.options import LATER, bound_options, did_you_mean, options_for_key
from edgedistill.recipe.schema import Source
from edgedistill.run import artifacts
from edgedistill.run.directory import find_run
from edgedistill.run.files import digest
from edgedistill.sources import chosen, text
from edgedistill.sources.checks import checked_network, classifier_of, is_published_headless
from edgedistill.sources.graphs import feature_operator, sha256_graph, weight_files
from edgedistill.sources.outputs import Network, Tunable
from edgedistill.students.build import load_student
from edgedistill.students.checkpoints import fit_state, hash_state, read_state
from edgedistill.students.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    hub_problem,
    package_file,
    package_fingerprint,
    package_state,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

Triple = tuple[float, float, float]
Arrays = NDArray[Any]
NAMED_BY = {"timm": "timm", "text": "open_clip_torch"}  # the package that knows which weights a name means
MAX_SIZE = 4096  # pixels of a side, and images of a fixed batch, of an ONNX graph's input


def timm_source(base: Path, *, model: str, pretrained: bool = True, seed: int = 0) -> Network:
    """A timm model with weights from the hub, or with random weights drawn by `seed` (`pretrained: false`).

    Args:
        base: the recipe's folder.
        model: the model's name in timm, or hf-hub:owner/name.
        pretrained: weights from the hub; false draws random ones.
        seed: seed of the random weights.
    """
    import timm
    import torch

    if pretrained:
        require_reachable(model)
    require_timm_model(model)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = timm.create_model(model, pretrained=pretrained)
    except RuntimeError as error:
        raise InputError(f"{model}: timm cannot build it ({str(error).splitlines()[0]})") from None
    return _from_timm(net)


def pypi(base: Path, *, package: str, model: str) -> Network:
    """The weights file of a PyPI package, loaded into the timm architecture `model`.

    Args:
        base: the recipe's folder.
        package: the package on PyPI.
        model: the timm architecture.
    """
    return _with_state(model, package_state(package), package)


def weights(base: Path, *, file: Path, model: str) -> Network:
    """A weights file (.safetensors, or a torch file of plain tensors), loaded into the timm architecture `model`.

    Args:
        base: the recipe's folder.
        file: the weights file.
        model: the timm architecture.
    """
    return _with_state(model, read_state(file), str(file))


def run(base: Path, *, path: Path | None = None, recipe: Path | None = None) -> Network:
    """A student of edgedistill: a run directory, or a recipe whose run is beside this one (trained first if needed).

    Args:
        base: the recipe's folder.
        path: the run directory.
        recipe: the recipe of a run beside this one.
    """
    if path is None:
        raise InputError("source: kind run needs `path` to a run directory, or `recipe`")
    trained = artifacts.shipped(find_run(path))
    record = artifacts.RESULT.read(trained)
    net = load_student(record.spec, trained / record.path).requires_grad_(False)
    identity = hash_state(net, record.spec.family)
    net.to(default_device())

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = net.backbone(images_BCHW)  # type: ignore[operator]
        return features_BD, net.head(features_BD).softmax(dim=1)  # type: ignore[operator]

    spec = record.spec
    return Network(
        forward=forward,
        input_px=spec.input_px,
        mean=spec.mean,
        std=spec.std,
        sha256=identity,
        tunable=Tunable(module=net, features=lambda module, images_BCHW: module.backbone(images_BCHW)),  # type: ignore[operator]
    )


def onnx(
    base: Path,
    *,
    file: Path,
    probabilities: str | None = None,
    features: str | None = None,
    logits: bool = True,
    headless: Annotated[bool, LATER] = False,
) -> Network:
    """An ONNX file as a black box: one image input [B, 3, px, px] or [B, px, px, 3], class scores or features out.

    A float input gets normalized images; a uint8 input gets bytes, as in the graphs that edgedistill exports.

    Args:
        base: not used; every kind takes it.
        file: the ONNX file.
        probabilities: name of the output with class scores; by default the first output.
        features: name of an output with features [B, D]; by default the log-probabilities are the features.
        logits: the scores are logits; a softmax is applied, unless they already are probabilities.
        headless: the graph has no class scores; the output `features` (by default the first one) is all that is used.
    """
    import torch

    session = _onnx_session(file)
    image, available = session.get_inputs()[0], [output.name for output in session.get_outputs()]
    if len(image.shape) != 4 or 3 not in {image.shape[1], image.shape[3]}:
        raise InputError(f"{file}: its input {image.name} is {image.shape}, not images of three channels")
    output_names = _output_names(file, available, probabilities=probabilities, features=features, headless=headless)
    channels_first, raw = image.shape[1] == 3, image.type == "tensor(uint8)"
    fixed = image.shape[0] if isinstance(image.shape[0], int) else None

    def run_graph(images_BCHW: Tensor) -> list[Tensor]:
        pixels = (images_BCHW * 255).round().to(torch.uint8) if raw else images_BCHW
        pixels = pixels if channels_first else pixels.permute(0, 2, 3, 1)
        fed = {image.name: pixels.contiguous().cpu().numpy()}
        return [torch.from_numpy(array) for array in session.run(output_names, fed)]

    def forward(images_BCHW: Tensor, softmax: bool) -> tuple[Tensor, Tensor | None]:
        batches = [run_graph(part) for part in _batches_of(images_BCHW, fixed)]
        scores, *rest = (torch.cat(parts)[: len(images_BCHW)] for parts in zip(*batches, strict=True))
        if headless:
            return scores, None
        probs_BK = scores.softmax(dim=1) if softmax and scores.ndim > 1 else scores
        return rest[0] if rest else probs_BK.clamp(min=1e-8).log(), probs_BK

    px, sha256 = image.shape[2], sha256_graph(file)
    # a graph that takes bytes contains the normalization, as the graphs that edgedistill exports
    mean, std = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) if raw else (IMAGENET_MEAN, IMAGENET_STD)
    bare = Network(
        forward=partial(forward, softmax=False),
        input_px=px if isinstance(px, int) else 224,
        mean=mean,
        std=std,
        sha256=digest([sha256, output_names, "headless" if headless else False]),
        has_classes=not headless,
    )
    if headless or not logits:
        return bare
    identity = digest([sha256, output_names, True])
    return replace(bare, forward=partial(forward, softmax=True), sha256=identity, without_softmax=bare)


def _output_names(
    file: Path, available: list[str], *, probabilities: str | None, features: str | None, headless: bool
) -> list[str]:
    """The graph's outputs to compute: class scores, then features; of a headless graph the features alone."""
    for name in filter(None, (probabilities, features)):
        if name not in available:
            raise InputError(f"{file}: has no output {name}{did_you_mean(name, available)}")
    if headless and probabilities:
        raise InputError(f"{file}: `probabilities` and `headless: true` exclude each other", "leave out one of them")
    if headless:
        return [features or available[0]]
    if not probabilities and (operator := feature_operator(file, available[0])):
        log.warning(
            "%s: %s comes from %s, as features do, and is taken for class scores; set `headless: true` if it holds "
            "features, or name it in `probabilities`",
            file,
            available[0],
            operator,
        )
    return [probabilities or available[0], *filter(None, [features])]


def _batches_of(images_BCHW: Tensor, fixed: int | None) -> list[Tensor]:
    """Split the batch into parts of the graph's fixed batch size; the last one is padded by repetition."""
    import torch

    if fixed is None:
        return [images_BCHW]
    *full, last = torch.split(images_BCHW, fixed)
    return [*full, torch.cat([last, last[:1].expand(fixed - len(last), *last.shape[1:])])]


def _onnx_session(file: Path) -> Any:
    """A session of a graph with an output and an input of a size that can be tried; ONNX Runtime's log is silent."""
    import onnxruntime

    from edgedistill.agent.ort import keep_arithmetic

    if not file.is_file():  # reading a FIFO may wait for ever
        raise InputError(f"{file}: is not a file", "check `file`")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    keep_arithmetic(settings)
    try:
        session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        shapes = [image.shape for image in session.get_inputs()]
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{file}: ONNX Runtime cannot load it ({reason})") from None
    if not shapes or not session.get_outputs():
        raise InputError(f"{file}: has no {'output' if shapes else 'input'}", "export a graph from images to classes")
    if any(isinstance(size, int) and not 1 <= size <= MAX_SIZE for size in shapes[0]):
        raise InputError(f"{file}: its input is {shapes[0]}, and sizes of 1 to {MAX_SIZE} are supported")
    return session


SOURCES: dict[str, Callable[..., Network]] = {
    "timm": timm_source,
    "pypi": pypi,
    "weights": weights,
    "run": run,
    "onnx": onnx,
    "text": text.text,
    "auto": chosen.auto,
}


def require_reachable(model: str) -> None:
    """Raise InputError if timm has no such model, or its weights are not available."""
    require_timm_model(model)
    problem = hub_problem(model)
    if problem:
        raise InputError(f"{model}: {problem}")


def require_timm_model(model: str) -> None:
    """Raise InputError with the nearest name if timm has no such architecture; hub ids are not checked."""
    from timm.models import is_model, list_models

    if not model.startswith(("hf-hub:", "hf_hub:")) and not is_model(model.split(".", maxsplit=1)[0]):
        raise InputError(f"timm has no model {model}{did_you_mean(model, list_models())}")


def _with_state(model: str, state: Mapping[str, Tensor], where: str) -> Network:
    """The architecture with a file's tensors: with a classifier, or without one if they fit only so."""
    import timm

    require_timm_model(model)
    misfits = []
    for classes in (_classes(model, state), 0):
        net = timm.create_model(model, pretrained=False, num_classes=classes)
        try:
            fit_state(net, state, where)
        except InputError as error:
            misfits.append(error)
        else:
            return _from_timm(net)
    raise misfits[0]


def _classes(model: str, state: Mapping[str, Tensor]) -> int:
    """Number of classes of a state dict: rows of timm's classifier, else of the last matrix or bias.

    The order alone does not suffice: safetensors files are sorted by name.
    """
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model, allow_unregistered=True)
    classifier = config.classifier if config else None
    ranked = [tensor for tensor in state.values() if tensor.ndim]
    by_name = state.get(f"{classifier}.weight")
    return int(by_name.shape[0] if by_name is not None else ranked[-1].shape[0]) if ranked else 0


def _from_timm(net: nn.Module) -> Network:
    classifier = classifier_of(net)
    net.eval().requires_grad_(False)
    config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]

    def features(module: nn.Module, images_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = module.forward_head(module.forward_features(images_BCHW), pre_logits=True)  # type: ignore[operator]
        return features_BD

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        features_BD = features(net, images_BCHW)
        return features_BD, None if classifier is None else classifier(features_BD).softmax(dim=1)

    px, identity = int(config["input_size"][-1]), hash_state(net, config["architecture"])
    net.to(default_device())
    return Network(
        forward=forward,
        input_px=px,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        sha256=identity,
        has_classes=classifier is not None,
        tunable=Tunable(module=net, features=features),
    )


def load(section: Source, base: Path) -> Network:
    """Load a source of the recipe; its input_px, mean and std take precedence over the model's own.

    Raises:
        InputError: the source is missing, its weights do not fit its architecture, or it fails `checked_network`.
    """
    kind = SOURCES[section.kind]
    try:
        net = kind(base, **bound_options(kind, section.options, base))
    except InputError as error:
        raise InputError(f"sources.{section.name}: {error.message}", error.fix) from None
    placed = replace(
        net,
        input_px=section.input_px or net.input_px,
        mean=section.mean or net.mean,
        std=section.std or net.std,
    )
    return checked_network(placed, section.name)


def has_classes(section: Source, base: Path) -> bool:
    """Whether a source has classes: the source is loaded, or, before a download, looked up in timm's registry.

    Raises:
        InputError: as `load`, or its weights are not available.
    """
    if section.kind == "text":
        options = bound_options(text.text, section.options, base)
        text.require_reachable(options["model"], options.get("pretrained"), options.get("file"))
        return True
    if section.kind != "timm" or not section.options.get("pretrained", True):
        return load(section, base).has_classes
    require_reachable(section.options["model"])
    return not is_published_headless(section.options["model"])


def fingerprint(section: Source, base: Path) -> str:
    """Hash of a source without loading it: file sizes and times, package versions, the section of the recipe.

    Raises:
        InputError: a file of the source is missing.
    """
    options = bound_options(SOURCES[section.kind], section.options, base)
    plain = options_for_key(SOURCES[section.kind], {n: v for n, v in options.items() if not isinstance(v, Path)})
    parts: list[Any] = [own_settings(section), digest(plain)]
    for name, option in sorted(options.items()):
        if isinstance(option, Path) and not option.exists():
            raise InputError(f"sources.{section.name}: {option.resolve()}: no such file", f"check `{name}`")
        if isinstance(option, Path) and option.is_dir():
            parts.append([name, artifacts.RESULT.read(artifacts.shipped(find_run(option))).sha256])
        elif isinstance(option, Path):
            try:
                files = [option, *(weight_files(option) if section.kind == "onnx" else [])]
            except InputError as error:
                raise InputError(f"sources.{section.name}: {error.message}", error.fix) from None
            parts += [[name, file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        elif name == "package":
            parts.append([name, package_fingerprint(option), package_file(option).stat().st_size])
    if section.kind in NAMED_BY and options.get("pretrained", section.kind == "timm"):
        parts.append(package_fingerprint(NAMED_BY[section.kind]))
    return digest(parts)


def own_settings(section: Source) -> str:
    """The section's own keys, without the options of its kind, as they enter its fingerprint."""
    return json.dumps(section.for_key(exclude=set(section.options)), separators=(",", ":"), ensure_ascii=False)
