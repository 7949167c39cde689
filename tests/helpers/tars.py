"""WebDataset shards to test with."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.helpers import miniature

LINE = 'unlabeled: {kind: wds, urls: "shards/{00..03}.tar", mixed: 16}\n'


def write(path: Path, samples: Mapping[str, bytes]) -> str:
    """A tar file with these members."""
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def beside(project: miniature.Project, method: str = "{name: weighted, lam: 0.8}") -> miniature.Project:
    """The project with a recipe that streams 46 more stripes out of four shards."""
    (project.root / "shards").mkdir()
    for at in range(4):
        samples = {}
        for i in range(10 + at):
            out = io.BytesIO()
            miniature.picture(i % 2 == 0, 5000 + 100 * at + i).save(out, "png")
            samples[f"{i:03d}.png"] = out.getvalue()
        write(project.root / f"shards/{at:02d}.tar", samples)
    text = project.recipe.read_text(encoding="utf-8").replace("{name: weighted, lam: 0.8}", method)
    project.recipe.write_text(text + LINE, encoding="utf-8")
    return project
