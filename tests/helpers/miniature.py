"""A complete project in small: pictures of two kinds of stripes, a recipe that takes seconds, and the command line.

It is built once a test session; a test that changes it takes a copy. The pictures are 40 px squares, no two alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edgedistill import cli

RECIPE = """\
name: mini
about: upright stripes from lying ones
data:
  kind: folder
  root: pictures
  unlabeled: more
  labels_per_class: 10
  val_fraction: 0.3
sources:
  - {name: first, kind: timm, model: resnet10t, pretrained: false, input_px: 32}
  - {name: second, kind: timm, model: resnet10t, pretrained: false, input_px: 32, seed: 1}
weigh: {metric: parc, also: [], bootstrap: 5}
student:
  families:
    micro: {width: [4, 8], input_px: 32}
search: {trials: 2, steps: 2}
distill:
  method: {name: weighted, lam: 0.8}
  steps: 30
  batch_labeled: 12
  batch_unlabeled: 4
  lr: 0.01
  ema_decay: 0.5
  checkpoint_every: 5
  evaluate_every: 10
  augment: {min_area: 0.8, jitter: 0.1}
export: {engines: [sm89]}
quantize: {calibration_images: 16}
bench: {processes: 1, rounds: 2, samples: 4, seconds: 0.05}
"""


@dataclass(frozen=True)
class Project:
    """A folder with recipe.yaml, the pictures that it names, and runs/."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def run(self) -> Path:
        """The only run directory."""
        (directory,) = self.directories()
        return directory

    def directories(self) -> list[Path]:
        return sorted(path for path in self.runs.iterdir() if path.is_dir() and path.name.startswith("mini-"))

    def copy(self, to: Path) -> Project:
        """A copy with the same modification times, so that the same steps are up to date."""
        return Project(root=Path(shutil.copytree(self.root, to / "copy", symlinks=True)))

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "manifest.json").read_text(encoding="utf-8"))["steps"])


@dataclass(frozen=True)
class CommandResult:
    """A finished command: exit code, both streams, and its duration in seconds."""

    code: int
    out: str
    err: str
    seconds: float


def picture(upright: bool, seed: int, px: int = 40) -> Image.Image:
    """Stripes of a random width and phase under blurred noise."""
    generator = np.random.default_rng(seed)
    phase, width = generator.uniform((0, 5), (6, 11))
    stripes = 60 * np.sin(np.arange(px) * 2 * np.pi / width + phase)
    gray = 128 + (stripes[None, :] if upright else stripes[:, None]) + np.zeros((px, px))
    noise = Image.fromarray(generator.integers(0, 256, (px, px, 3), dtype=np.uint8))
    blurred = np.asarray(noise.filter(ImageFilter.GaussianBlur(1)), dtype=np.float64) - 128
    return Image.fromarray(np.clip(gray[..., None] + blurred, 0, 255).astype(np.uint8))


def write(root: Path, recipe: str = RECIPE) -> Project:
    """Write pictures/{train,test}/{lying,upright}/, more/ without labels, and recipe.yaml."""
    for part, count, start in (("train", 14, 0), ("test", 8, 1000)):
        for upright, name in enumerate(("lying", "upright")):
            folder = root / "pictures" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(bool(upright), start + 100 * upright + index).save(folder / f"{index:02d}.png")
    (root / "more").mkdir()
    for index in range(12):
        picture(index % 2 == 0, 2000 + index).save(root / "more" / f"{index:02d}.png")
    (root / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return Project(root=root)


def call(*arguments: str | Path) -> CommandResult:
    """Run the command line in this process, with its warning filters; `edgedistill` runs it in a process of its own."""
    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    started = time.monotonic()
    sys.argv = ["edgedistill", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as exit_request:
        code = int(exit_request.code or 0)
    finally:
        sys.argv = argv
    return CommandResult(code=code, out=out.getvalue(), err=err.getvalue(), seconds=time.monotonic() - started)


def command(*arguments: str | Path) -> list[str]:
    """The command line as argv of a process of its own, whose last line on stderr says whether it loaded torch."""
    body = """import sys
from edgedistill.cli import main
try:
    main()
finally:
    print("torch was loaded" if "torch" in sys.modules else "torch was not loaded", file=sys.stderr)
"""
    return [sys.executable, "-c", body, *map(str, arguments)]


def edgedistill(*arguments: str | Path, cwd: Path | None = None, timeout_s: float = 600) -> CommandResult:
    """Run the command line in a process of its own."""
    started = time.monotonic()
    process = subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=cwd, check=False, timeout=timeout_s
    )
    return CommandResult(
        code=process.returncode, out=process.stdout, err=process.stderr, seconds=time.monotonic() - started
    )


def main(folder: Path) -> int:
    """Run the miniature in a folder, or again where it was run before; prints the hashes that must not change."""
    project = Project(root=folder) if folder.exists() else write(folder)
    outcome = call("run", project.recipe, "--runs", project.runs)
    print(outcome.err, end="")
    for name in ("weigh/weights.json", "search/student.json", "distill/student.safetensors"):
        print(hashlib.sha256((project.run / name).read_bytes()).hexdigest(), name)
    return outcome.code


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.helpers.miniature FOLDER")
    sys.exit(main(Path(sys.argv[1])))
