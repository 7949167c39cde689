"""WebDataset shards for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.helpers import miniature

LINE = 'unlabeled: {kind: wds, urls: "shards/{00..03}.tar", mixed: 16}\n'


def write(path: Path, samples: Mapping[str, bytes]) -> str:
    """Write a tar file with these members; returns its path."""
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def add_shards(project: miniature.Project, method: str = "{name: weighted, lam: 0.8}") -> miniature.Project:
    """Add four shards with 46 pictures of stripes, and a recipe that streams them."""
    (project.root / "shards").mkdir()
    for shard in range(4):
        samples = {}
        for i in range(10 + shard):
            png = io.BytesIO()
            miniature.picture(i % 2 == 0, 5000 + 100 * shard + i).save(png, "png")
            samples[f"{i:03d}.png"] = png.getvalue()
        write(project.root / f"shards/{shard:02d}.tar", samples)
    text = project.recipe.read_text(encoding="utf-8").replace("{name: weighted, lam: 0.8}", method)
    project.recipe.write_text(text + LINE, encoding="utf-8")
    return project
