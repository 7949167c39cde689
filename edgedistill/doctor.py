"""`edgedistill doctor`: what is installed and reachable here, and what each missing thing costs."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgedistill import __version__
from edgedistill.agent import backends
from edgedistill.agent.machine import memory_mb
from edgedistill.run import environment
from edgedistill.run.directory import CACHE

LEAST_FREE_GB = 5.0  # of a run with several sources' outputs
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "pillow")
# a module, the extra that brings it, and what is missing without it
EXTRAS = (
    ("open_clip", "clip", "no text sources, and no image-text models of the catalog"),
    ("accelerate", "scale", "a training takes one process"),
    ("webdataset", "scale", "no images in shards"),
    ("psycopg", "postgres", "no search that several machines share"),
    ("tensorrt_rtx", "rtx", "no engines that are built ahead of time for a GPU"),
    ("openvino", "openvino", "no measurement with OpenVINO on this machine, which may be the faster engine of a CPU"),
    ("ncnn", "ncnn", "no measurement with ncnn on this machine, and no graph for it"),
    ("pnnx", "ncnn", "no graph for ncnn (`export: {ncnn: true}`)"),
    ("starlette", "annotate", "no `edgedistill annotate`, the page on which pictures are labeled"),
    ("uvicorn", "annotate", "no `edgedistill annotate`, the page on which pictures are labeled"),
    ("elpv_dataset", "demo", "no recipes/quickstart.yaml"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line of the diagnosis; `cost` says what is missing and how to get it, and is empty where all is well."""

    topic: str
    text: str
    cost: str = ""


def findings(runs: Path) -> list[Finding]:
    """Look at this machine; it takes seconds, since torch is loaded and the hub is asked.

    Args:
        runs: the folder of the run directories.
    """
    return [*_versions(), *_machine(runs), *_weights(), *_runtimes(), *_extras()]


def as_text(diagnosis: list[Finding]) -> str:
    """A line for each finding, and below it what a missing thing costs."""
    lines = []
    for finding in diagnosis:
        lines.append(f"{finding.topic:<12} {finding.text}")
        if finding.cost:
            lines.append(f"{'':<12} -> {finding.cost}")
    return "\n".join(lines)


def _versions() -> Iterator[Finding]:
    yield Finding(topic="edgedistill", text=f"{__version__}, Python {platform.python_version()} in {sys.prefix}")
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if not version]
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    cost = f"nothing works without {', '.join(missing)}: install them again" if missing else ""
    yield Finding(topic="packages", text=known, cost=cost)


def _machine(runs: Path) -> Iterator[Finding]:
    from edgedistill.distributed.device import gpu_count, has_gpu

    try:
        memory = f", {memory_mb(Path('/proc/meminfo').read_text(encoding='utf-8'), 'MemAvailable') / 1000:.1f} GB free"
    except OSError:
        memory = ""
    yield Finding(topic="processor", text=f"{environment.processor()}{memory}")
    gpu = has_gpu()
    yield Finding(
        topic="GPU",
        text=f"{gpu_count()} for torch" if gpu else "none for torch",
        cost="" if gpu else "trainings run on the processor: small students and pictures alone take minutes there",
    )
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.is_dir())
    free_gb = shutil.disk_usage(place).free / 1e9
    cost = f"a run may need {LEAST_FREE_GB:g} GB: free some, or name another folder by --runs"
    yield Finding(topic="disk", text=f"{free_gb:.1f} GB free in {place}", cost=cost if free_gb < LEAST_FREE_GB else "")
    if (runs / CACHE).is_dir():
        yield Finding(topic="cache", text=f"{_gigabytes(runs / CACHE):.2f} GB in {runs / CACHE}; it may be deleted")


def _weights() -> Iterator[Finding]:
    from huggingface_hub import constants

    from edgedistill.students import pretrained

    cached = pretrained.cached_repositories()
    folder = Path(constants.HF_HUB_CACHE)
    size = f", {_gigabytes(folder):.2f} GB" if folder.is_dir() else ""
    yield Finding(topic="weights", text=f"{len(cached)} models of the hub in {folder}{size}")
    answers = pretrained.hub_answers()
    yield Finding(
        topic="hub",
        text=f"{constants.ENDPOINT} {'answers' if answers else 'does not answer'}",
        cost="" if answers else "weights and data sets that are not here cannot be fetched; those that are here serve",
    )


def _runtimes() -> Iterator[Finding]:
    for name, state in backends.available().items():
        is_here = not state.startswith("not here")
        cost = "" if is_here else "students are not measured with it on this machine; a device may have it"
        yield Finding(topic="runtime", text=f"{name}: {' '.join(state.split())}", cost=cost)


def _extras() -> Iterator[Finding]:
    for module, extra, missing in EXTRAS:
        is_here = find_spec(module) is not None
        cost = "" if is_here else f'{missing}; pip install "edgedistill[{extra}]"'
        yield Finding(topic="extra", text=f"{module}: {'installed' if is_here else 'not installed'}", cost=cost)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gigabytes(folder: Path) -> float:
    """What the files of a folder take, links not followed."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e9
