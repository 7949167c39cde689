"""Results as JSON lines, one a measurement, in files of benchmarks/results that are named by hardware and month."""

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
    """Processor and cores as a file name: "intel-xeon-processor-2-cores"."""
    machine = environment.describe()
    words = re.sub(r"\((r|tm)\)|@.*| cpu", "", machine["cpu"].lower())
    return f"{re.sub('[^a-z0-9]+', '-', words).strip('-')}-{machine['cores']}-cores"


def append(kind: str, line: dict[str, Any]) -> Path:
    """Append one measurement with versions and commit to RESULTS/<kind>_<hardware>_<yyyymm>.jsonl; return its path."""
    facts = environment.describe()
    path = RESULTS / f"{kind}_{hardware()}_{time.strftime('%Y%m', time.gmtime())}.jsonl"
    path.parent.mkdir(exist_ok=True)
    complete = {
        **line,
        "packages": facts["packages"],
        "python": facts["python"],
        "cpu": facts["cpu"],
        "cores": facts["cores"],
        "commit": facts["commit"],
        "measured": facts["started"],
    }
    with path.open("a+b") as stream:
        if stream.tell() and not _ends_a_line(path):
            stream.write(b"\n")  # a kill cut the last line short; it stays, and read() skips it
        stream.write(json.dumps(complete).encode() + b"\n")
    return path


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() == b"\n"


def read(kind: str) -> Iterator[dict[str, Any]]:
    """Yield every committed line of a kind, oldest file first; a line that a kill cut short is skipped and reported."""
    for path in sorted(RESULTS.glob(f"{kind}_*.jsonl")):
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                yield json.loads(text)
            except ValueError:
                say(f"{path.name}:{number}: not a complete line; skipped")


def run_program(main: Callable[[], int]) -> None:
    """Exit with the status that `main` returns; an EdgeDistillError prints its one line and sets its own exit code."""
    try:
        sys.exit(main())
    except EdgeDistillError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
