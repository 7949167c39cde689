"""The bundle: the files that a device needs, in one flat folder with checksums.

    student.*.onnx  agent.pyz  label.py  pictures.py  unsure.py  images.npy  labels.npy  host.<model>.npy
    bundle.json  MODEL_CARD.md  SHA256SUMS

agent.pyz holds `edgedistill.agent` without label.py and unsure.py. These two and pictures.py are separate files of the
bundle, to be read and changed by its users; their sources are in edgedistill/agent/, deploy/bundle/ links to them.
N images.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgedistill import agent
from edgedistill.agent import backends, pictures
from edgedistill.agent.job import AgentError
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import OnnxModel, Target
from edgedistill.run.artifacts import EXPORT
from edgedistill.run.files import atomic, sha256_file

SUMS, AGENT, DESCRIPTION, CARD = "SHA256SUMS", "agent.pyz", "bundle.json", "MODEL_CARD.md"
EXAMPLE = ("label.py", "pictures.py", "unsure.py")  # of the agent's folder, beside the archive
ARCHIVED_EXAMPLE = ("pictures.py",)  # also in the archive, which times what label.py does
IMAGES, LABELS = "images.npy", "labels.npy"
# of its files; others in the folder are their user's
PATTERNS = ("student.*", AGENT, *EXAMPLE, IMAGES, LABELS, "host.*.npy", DESCRIPTION, CARD, SUMS)
REQUIRED = frozenset({"classes", "input_px", "store_px", "fit"})
# __main__.py of agent.pyz: any Python 3, and 2.7 too, must be able to print that it is too old
ENTRY = """import sys

if sys.version_info < (3, 8):
    found = ".".join(str(one) for one in sys.version_info[:3])
    fix = "name another in deploy/devices.yaml (python:)"
    sys.stderr.write("agent: Python %s is too old, 3.8 or later is needed; %s\\n" % (found, fix))
    sys.exit(2)

from agent.__main__ import main

sys.exit(main())
"""


def model_name(model: OnnxModel) -> str:
    """The name of a model in a bundle and in its reports: fp32, fp16, int8-cpu, int8-tensorrt."""
    return model.name


def target_of(backend: str) -> Target:
    """The target whose graphs a backend runs, besides the graphs for any target.

    Raises:
        InputError: there is no such backend.
    """
    try:
        return cast("Target", backends.target_of(backend))
    except AgentError as error:
        raise InputError(f"bench.backends: {error}") from None


def host_file(name: str) -> str:
    """The name of the file with the host's predictions of model `name`."""
    return f"host.{name}.npy"


def write_bundle(
    folder: Path,
    models: Sequence[tuple[Path, OnnxModel]],
    description: Mapping[str, Any],
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    host_predictions: Mapping[str, np.ndarray],
    *,
    card: str = "",
) -> list[Path]:
    """Fill `folder` and return every file of the bundle, SHA256SUMS last.

    Args:
        folder: output folder; files of an earlier bundle that this one lacks are removed, other files stay.
        models: path and record of each graph.
        description: classes, input_px, store_px and fit, and further entries of bundle.json; "default" is the name of
            the model that label.py uses, by default the first one; "range" are the values that become black and white
            in pictures of more than 8 bits, by default None: such pictures are refused; "rules" has entries for the
            model of a name, such as its temperature and threshold.
        images_NHWC: test images at the model's input size, uint8 [N, px, px, 3].
        labels_N: true classes of the images [N].
        host_predictions: model name -> classes that the host computed for the same images [N].
        card: the text of MODEL_CARD.md; without it there is no such file.

    Raises:
        EdgeDistillError: a graph on disk differs from its record.
    """
    arrays = _arrays(images_NHWC, labels_N, host_predictions)
    contents = {model_path.name: _graph(model_path, record) for model_path, record in models}
    contents |= {name: _npy(array) for name, array in arrays.items()}
    contents |= _programs()
    contents[DESCRIPTION] = json.dumps(_describe(models, description), indent=1).encode() + b"\n"
    if card:
        contents[CARD] = card.encode()
    _remove_stale(folder, set(contents))
    for name, content in contents.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(content)
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in sorted(contents))
    with atomic(folder / SUMS) as temporary:
        temporary.write_text(sums, encoding="utf-8")
    return [folder / name for name in [*sorted(contents), SUMS]]


def verify_bundle(folder: Path) -> list[Path]:
    """Return the files that SHA256SUMS lists, after checking each one's sha256; none of them is run before.

    Raises:
        InputError: there is no bundle, or a file is missing or altered.
    """
    altered = [name for name, sha256 in _sums(folder).items() if not _is_intact(folder / name, sha256)]
    if altered:
        raise InputError(f"{folder}: {', '.join(altered)}: not as in {SUMS}", EXPORT)
    return [folder / name for name in _sums(folder)]


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return path.is_file() and sha256_file(path) == sha256
    except OSError:  # a name that no file can have, or a file that cannot be read
        return False


def programs() -> dict[str, str]:
    """The sha256 of every program of the bundle, by file name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in _programs().items()}


def _programs() -> dict[str, bytes]:
    return {AGENT: agent_archive(), **{name: agent_folder().joinpath(name).read_bytes() for name in EXAMPLE}}


def fitting(backend: str, models: Iterable[OnnxModel]) -> list[OnnxModel]:
    """Those of the graphs that a backend runs.

    Raises:
        InputError: the agent has no such backend.
    """
    target_of(backend)
    return [model for model in models if backends.runs(backend, model.target)]


def agent_archive() -> bytes:
    """Build agent.pyz, which `python agent.pyz` runs; the same sources always give the same bytes."""
    sources = {
        f"agent/{path.name}": path.read_bytes()
        for path in sorted(agent_folder().glob("*.py"))
        if path.name not in EXAMPLE or path.name in ARCHIVED_EXAMPLE
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, source in {"__main__.py": ENTRY.encode(), **sources}.items():
            # a ZipInfo created from a name alone has the date 1980-01-01, whenever it is written
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            archive.writestr(entry, source)
    return buffer.getvalue()


def agent_folder() -> Path:
    """The folder of the agent's modules in this installation."""
    return Path(str(agent.__file__)).parent


def _graph(path: Path, record: OnnxModel) -> bytes:
    if sha256_file(path) != record.sha256:
        raise EdgeDistillError(f"{path}: is not the graph that was entered (sha256 differs)", EXPORT)
    return path.read_bytes()


def _arrays(images_NHWC: np.ndarray, labels_N: np.ndarray, host: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    n = len(images_NHWC)
    assert images_NHWC.dtype == np.uint8 and images_NHWC.ndim == 4 and n, "images are uint8 [N, px, px, 3], N >= 1"
    assert all(np.shape(array_N) == (n,) for array_N in (labels_N, *host.values())), "labels and predictions are [N]"
    arrays_N = {LABELS: labels_N, **{host_file(name): predicted_N for name, predicted_N in host.items()}}
    return {IMAGES: images_NHWC, **{name: np.asarray(array_N, dtype=np.int64) for name, array_N in arrays_N.items()}}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _describe(models: Sequence[tuple[Path, OnnxModel]], description: Mapping[str, Any]) -> dict[str, Any]:
    names = [model_name(record) for _, record in models]
    default, rules = description.get("default", names[0]), description.get("rules", {})
    assert set(description) >= REQUIRED, f"a bundle is described by {sorted(REQUIRED)}"
    assert default in names and len(set(names)) == len(names), "model names are unique and hold the default"
    return {
        "version": 1,
        **{key: entry for key, entry in description.items() if key != "rules"},
        "input": {"name": "images", "dtype": "uint8", "layout": "NHWC", "channels": "RGB"},
        "output": {"name": "logits", "dtype": "float32", "layout": "NC"},
        "normalization": "inside the graph",
        "background": pictures.BACKGROUND,
        "default": default,
        "models": [
            {
                "name": name,
                "file": path.name,
                "sha256": record.sha256,
                "precision": record.precision,
                "target": record.target,
                **rules.get(name, {}),
            }
            for name, (path, record) in zip(names, models, strict=True)
        ],
    }


def _sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{folder}: no bundle ({SUMS}: {error.strerror})", "run `edgedistill export` first") from None
    pairs = [line.partition("  ") for line in lines]
    if not pairs or any(not gap or not name or Path(name).name != name for _, gap, name in pairs):
        raise InputError(f"{folder / SUMS}: is not a list of `sha256  file`", EXPORT)
    return {name: sha256 for sha256, _, name in pairs}


def _remove_stale(folder: Path, current: set[str]) -> None:
    """Remove stale files of an earlier bundle, SHA256SUMS first, so that an incomplete bundle has none.

    Only files that the earlier SHA256SUMS lists are removed: others belong to the user.
    """
    if not (folder / SUMS).is_file():
        return
    stale = set(_sums(folder)) - current
    (folder / SUMS).unlink()
    for name in stale:
        (folder / name).unlink(missing_ok=True)
