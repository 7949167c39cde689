"""Results as committed lines: one JSON object a measurement, in benchmarks/results, named by hardware and month."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgedistill.console import say
from edgedistill.errors import EdgeDistillError
from edgedistill.run import environment

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
    whole = {
        **line,
        "packages": said["packages"],
        "python": said["python"],
        "cpu": said["cpu"],
        "cores": said["cores"],
        "commit": said["commit"],
        "measured": said["started"],
    }
    with path.open("a+b") as stream:
        if stream.tell() and not _ends_a_line(path):
            stream.write(b"\n")  # a kill cut the last line short; it stays, and read() passes over it
        stream.write(json.dumps(whole).encode() + b"\n")
    return path


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() == b"\n"


def read(kind: str) -> Iterator[dict[str, Any]]:
    """Every committed line of a kind, oldest file first; one that a kill cut short is passed over, and said."""
    for path in sorted(RESULTS.glob(f"{kind}_*.jsonl")):
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                yield json.loads(text)
            except ValueError:
                say(f"{path.name}:{number}: not a whole line; passed over")


def to_the_end(main: Callable[[], int]) -> None:
    """End the program as `main` says, or with an error's own exit code and its one line."""
    try:
        sys.exit(main())
    except EdgeDistillError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
