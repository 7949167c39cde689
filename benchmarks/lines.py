"""Results as JSON lines, one a measurement, in files of benchmarks/results that are named by hardware and month.

python -m benchmarks.lines    count the lines whose commit cannot be looked up, by the prefix of their file
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
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
    """Yield every committed line of a kind, oldest first, lines without a date before all others.

    A line that a kill cut short is skipped and reported.
    """
    lines = [line for path in sorted(RESULTS.glob(f"{kind}_*.jsonl")) for line in _lines_of(path)]
    # file names begin with the hardware, so that their order is not that of time; many readers take the last line
    yield from sorted(lines, key=lambda line: line.get("measured") or "")


def _lines_of(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(text)
        except ValueError:
            say(f"{path.name}:{number}: not a complete line; skipped")


def lost_commits(exists: Callable[[str], bool]) -> tuple[Counter[str], Counter[str]]:
    """Lines by the prefix of their file: those without a commit, and those that name one that does not exist.

    Args:
        exists: whether a commit can be looked up.
    """
    unnamed, lost = Counter[str](), Counter[str]()
    answers: dict[str, bool] = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        prefix = path.stem.rsplit("_", 2)[0]
        for line in _lines_of(path):
            commit = (line.get("commit") or "").removesuffix("+")  # "+": there were changes beside the commit
            if commit and commit not in answers:
                answers[commit] = exists(commit)
            if not answers.get(commit, False):
                (lost if commit else unnamed)[prefix] += 1
    return unnamed, lost


def in_history(commit: str) -> bool:
    """Whether git can look up the commit in this clone."""
    command = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, check=False).returncode == 0


def run_program(main: Callable[[], int]) -> None:
    """Exit with the status that `main` returns; an EdgeDistillError prints its one line and sets its own exit code."""
    try:
        sys.exit(main())
    except EdgeDistillError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    for title, counts in zip(("without a commit", "commit not in this history"), lost_commits(in_history), strict=True):
        print(f"{title}: {counts.total()} lines; {', '.join(f'{prefix} {n}' for prefix, n in counts.items())}")
