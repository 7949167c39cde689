"""Source models: frozen, from anywhere, each fed its own input size and preprocessing; their outputs computed once.

A source kind is one function in SOURCES. Its keyword-only parameters are its recipe options. It returns a `Network`:
from normalised float [B, 3, px, px] to features [B, D] and class probabilities [B, K].

N images of the target's train store, D features, K classes of the source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.distributed.device import default_device
from edgedistill.errors import InputError
from edgedistill.recipe.options import bound_options, did_you_mean
from edgedistill.recipe.schema import Source
from edgedistill.run import artifacts
from edgedistill.run.directory import find_run
from edgedistill.run.files import digest, sha256_file
from edgedistill.sources.outputs import Network, infer
from edgedistill.students.build import load_student
from edgedistill.students.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    fit_state,
    hub_problem,
    package_file,
    package_fingerprint,
    package_state,
    read_state,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

Triple = tuple[float, float, float]
Arrays = NDArray[Any]


def timm_source(base: Path, *, model: str, pretrained: bool = True, seed: int = 0) -> Network:
    """A timm model: from the hub, or with random weights drawn from `seed` (`pretrained: false`)."""
    import timm
    import torch

    if pretrained:
        reachable(model)
    known_to_timm(model)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = timm.create_model(model, pretrained=pretrained)
    except RuntimeError as error:
        raise InputError(f"{model}: timm cannot build it ({str(error).splitlines()[0]})") from None
    return _from_timm(net)


def pypi(base: Path, *, package: str, model: str) -> Network:
    """A weights package from PyPI, its one weights file loaded onto the timm architecture `model`."""
    return _with_state(model, package_state(package), package)


def weights(base: Path, *, file: Path, model: str) -> Network:
    """A weights file (.safetensors, or a torch file of plain tensors) onto the timm architecture `model`."""
    return _with_state(model, read_state(file), str(file))


def run(base: Path, *, path: Path | None = None, recipe: Path | None = None) -> Network:
    """A student of ours: a run directory, or a recipe whose run stands beside this one (trained first if need be)."""
    if path is None:
        raise InputError("source: kind run needs `path` to a run directory, or `recipe`")
    trained = find_run(path)
    record = artifacts.RESULT.read(trained)
    net = load_student(record.spec, trained / record.path).requires_grad_(False)
    identity = _hash_state(net, record.spec.family)
    net.to(default_device())

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = net.backbone(images_BCHW)  # type: ignore[operator]
        return features_BD, net.head(features_BD).softmax(dim=1)  # type: ignore[operator]

    spec = record.spec
    return Network(forward=forward, input_px=spec.input_px, mean=spec.mean, std=spec.std, sha256=identity)


def onnx(
    base: Path, *, file: Path, probabilities: str | None = None, features: str | None = None, logits: bool = True
) -> Network:
    """An ONNX file as a black box: one image input [B, 3, px, px] or [B, px, px, 3], class scores out.

    A float input gets normalised images; a uint8 input gets bytes, as the graphs exported here want them.

    Args:
        base: unused; every kind takes it.
        file: the ONNX file.
        probabilities: name of the output with class scores; the first output if left out.
        features: name of an output with features [B, D]; without it the log-probabilities stand in for them.
        logits: the scores are logits and are put through a softmax.
    """
    import onnxruntime
    import torch

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise InputError(f"{file}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from None
    image, known = session.get_inputs()[0], [one.name for one in session.get_outputs()]
    for name in filter(None, (probabilities, features)):
        if name not in known:
            raise InputError(f"{file}: has no output {name}{did_you_mean(name, known)}")
    if len(image.shape) != 4 or 3 not in {image.shape[1], image.shape[3]}:
        raise InputError(f"{file}: its input {image.name} is {image.shape}, not images of three channels")
    wanted = [probabilities or known[0], *([features] if features else [])]
    channels_first, raw = image.shape[1] == 3, image.type == "tensor(uint8)"
    fixed = image.shape[0] if isinstance(image.shape[0], int) else None

    def answer(images_BCHW: Tensor) -> list[Tensor]:
        given = (images_BCHW * 255).round().to(torch.uint8) if raw else images_BCHW
        given = given if channels_first else given.permute(0, 2, 3, 1)
        fed = {image.name: given.contiguous().cpu().numpy()}
        return [torch.from_numpy(one) for one in session.run(wanted, fed)]

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        answers = [answer(part) for part in _batches_of(images_BCHW, fixed)]
        scores, *rest = (torch.cat(parts)[: len(images_BCHW)] for parts in zip(*answers, strict=True))
        probs_BK = scores.softmax(dim=1) if logits else scores
        return rest[0] if rest else probs_BK.clamp(min=1e-8).log(), probs_BK

    px = image.shape[2]
    # a graph that takes bytes normalises by itself, as the ones exported here do
    mean, std = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) if raw else (IMAGENET_MEAN, IMAGENET_STD)
    identity = digest([sha256_file(file), wanted, logits])
    return Network(forward=forward, input_px=px if isinstance(px, int) else 224, mean=mean, std=std, sha256=identity)


def _batches_of(images_BCHW: Tensor, fixed: int | None) -> list[Tensor]:
    """The batch in parts of the size that a graph with a fixed batch takes, the last one filled up by repeating."""
    import torch

    if fixed is None:
        return [images_BCHW]
    *whole, last = torch.split(images_BCHW, fixed)
    return [*whole, torch.cat([last, last[:1].expand(fixed - len(last), *last.shape[1:])])]


SOURCES: dict[str, Callable[..., Network]] = {
    "timm": timm_source,
    "pypi": pypi,
    "weights": weights,
    "run": run,
    "onnx": onnx,
}


def reachable(model: str) -> None:
    """Raise InputError where timm does not know the model, or its weights are neither cached nor to be fetched."""
    known_to_timm(model)
    problem = hub_problem(model)
    if problem:
        raise InputError(f"{model}: {problem}")


def known_to_timm(model: str) -> None:
    """Raise InputError with the nearest name where timm has no such architecture (a hub id is taken as it is)."""
    from timm.models import is_model, list_models

    if not model.startswith(("hf-hub:", "hf_hub:")) and not is_model(model.split(".", maxsplit=1)[0]):
        raise InputError(f"timm has no model {model}{did_you_mean(model, list_models())}")


def _with_state(model: str, state: Mapping[str, Tensor], where: str) -> Network:
    import timm

    known_to_timm(model)
    net = timm.create_model(model, pretrained=False, num_classes=_classes(model, state))
    fit_state(net, state, where)
    return _from_timm(net)


def _classes(model: str, state: Mapping[str, Tensor]) -> int:
    """The classes of a state dict: of its classifier as timm names it, else of its last matrix or bias.

    The order alone would not do: safetensors files are sorted by name.
    """
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model, allow_unregistered=True)
    classifier = config.classifier if config else None
    ranked = [value for value in state.values() if value.ndim]
    by_name = state.get(f"{classifier}.weight")
    return int(by_name.shape[0] if by_name is not None else ranked[-1].shape[0]) if ranked else 0


def _from_timm(net: nn.Module) -> Network:
    net.eval().requires_grad_(False)
    config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = net.forward_head(net.forward_features(images_BCHW), pre_logits=True)  # type: ignore[operator]
        return features_BD, net.get_classifier()(features_BD).softmax(dim=1)  # type: ignore[operator]

    px, identity = int(config["input_size"][-1]), _hash_state(net, config["architecture"])
    net.to(default_device())
    return Network(forward=forward, input_px=px, mean=tuple(config["mean"]), std=tuple(config["std"]), sha256=identity)


def _hash_state(net: nn.Module, architecture: str) -> str:
    running = hashlib.sha256(architecture.encode())
    for name, value in net.state_dict().items():
        running.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return running.hexdigest()


def load(section: Source, base: Path) -> Network:
    """The source that a recipe names; the recipe's input_px, mean and std win over the model's own.

    Raises:
        InputError: the source is not there, or its weights do not fit its architecture.
    """
    kind = SOURCES[section.kind]
    try:
        net = kind(base, **bound_options(kind, section.options, base))
    except InputError as error:
        raise InputError(f"sources.{section.name}: {error.message}", error.fix) from None
    placed = Network(
        forward=net.forward,
        input_px=section.input_px or net.input_px,
        mean=section.mean or net.mean,
        std=section.std or net.std,
        sha256=net.sha256,
    )
    try:
        infer(placed, np.zeros((1, placed.input_px, placed.input_px, 3), dtype=np.uint8))
    except Exception as error:  # whatever a foreign network raises, it means that it cannot be asked
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"sources.{section.name}: gives no features and classes for an image of {placed.input_px} px "
            f"({type(error).__name__}: {reason})",
            "set input_px, or use another model",
        ) from None
    return placed


def fingerprint(section: Source, base: Path) -> str:
    """What the source is made of, without loading it: file sizes and times, package versions, the recipe's own words.

    Raises:
        InputError: a file that it needs is not there.
    """
    options = bound_options(SOURCES[section.kind], section.options, base)
    plain = {name: value for name, value in options.items() if not isinstance(value, Path)}
    parts = [section.model_dump_json(exclude=set(section.options)), digest(plain)]
    for name, value in sorted(options.items()):
        if isinstance(value, Path) and not value.exists():
            raise InputError(f"sources.{section.name}: {value.resolve()}: no such file", f"check `{name}`")
        if isinstance(value, Path) and value.is_dir():
            parts.append(artifacts.RESULT.read(find_run(value)).sha256)
        elif isinstance(value, Path):
            parts.append(f"{value.name} {value.stat().st_size} {value.stat().st_mtime_ns}")
        elif name == "package":
            parts.append(f"{package_fingerprint(value)} {package_file(value).stat().st_size}")
    return digest(parts)
