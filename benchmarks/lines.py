"""Results as committed lines: one JSON object a measurement, in benchmarks/results, named by hardware and month."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgedistill import environment

RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """The processor as a file name: "intel-xeon-processor-2-cores"."""
    said = environment.describe()
    words = re.sub(r"\((r|tm)\)|@.*| cpu", "", said["cpu"].lower())
    return f"{re.sub('[^a-z0-9]+', '-', words).strip('-')}-{said['cores']}-cores"


def append(kind: str, line: dict[str, Any]) -> Path:
    """Append one measurement to results/<kind>_<hardware>_<yyyymm>.jsonl, with versions and commit."""
    said = environment.describe()
    path = RESULTS / f"{kind}_{hardware()}_{time.strftime('%Y%m', time.gmtime())}.jsonl"
    path.parent.mkdir(exist_ok=True)
    whole = {**line, "packages": said["packages"], "python": said["python"], "cpu": said["cpu"], "cores": said["cores"],
             "commit": said["commit"], "measured": said["started"]}  # fmt: skip
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(whole) + "\n")
    return path


def read(kind: str) -> Iterator[dict[str, Any]]:
    """Every committed line of a kind, oldest file first."""
    for path in sorted(RESULTS.glob(f"{kind}_*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(text)
