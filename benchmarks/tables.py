"""The tables of README.md, benchmarks/README.md and docs, made from the committed lines and from nothing else.

python -m benchmarks.tables            rewrite what stands between the markers
python -m benchmarks.tables --check    exit 1 where a page is not what its lines say
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import peer_torchdistill, quickstart, scale, step_cost
from benchmarks.lines import read
from benchmarks.meter import table as meters
from benchmarks.quantize import alike, distilled, tuned, whole
from benchmarks.quantize import table as quantized
from benchmarks.search import table as search
from benchmarks.suite import table

ROOT = Path(__file__).parent.parent


def newest_quickstart() -> str:
    """The newest line of the quickstart."""
    return quickstart.table(list(read("quickstart"))[-1])


def step_costs() -> str:
    """Every line of the cost of sources."""
    return step_cost.table(list(read("step_cost")))


def torchdistill() -> str:
    """Every line of the epoch beside torchdistill's."""
    return peer_torchdistill.table(list(read("peer_torchdistill")))


def scales() -> str:
    """What many images cost."""
    return scale.table(list(read("scale")))


def int8() -> dict[str, Callable[[], str]]:
    """The tables of docs/int8.md."""
    return {
        "quantize": lambda: quantized.markdown(list(read("quantize"))),
        "quantize-alike": lambda: alike.markdown(list(read(alike.KIND))),
        "quantize-qat": lambda: tuned.markdown(list(read(tuned.KIND))),
        "quantize-distilled": lambda: distilled.markdown(list(read(distilled.KIND))),
        "quantize-whole": lambda: whole.markdown(list(read(whole.KIND))),
    }


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"quickstart": newest_quickstart, "suite": table.headline},
    ROOT / "benchmarks/README.md": {
        "step_cost": step_costs,
        "peer_torchdistill": torchdistill,
        "meter": lambda: meters.markdown(read(meters.KIND)),
        "suite": table.headline,
        "search": search.markdown,
    },
    ROOT / "docs/scale.md": {"scale": scales},
    ROOT / "docs/int8.md": int8(),
}


def rewritten(text: str, name: str, table: str) -> str:
    """A page with `table` between the markers called `name`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def stale() -> dict[Path, str]:
    """The pages that are not what their lines say, and what they should be."""
    found = {}
    for path, tables in PAGES.items():
        text = wanted = path.read_text(encoding="utf-8")
        for name, make in tables.items():
            wanted = rewritten(wanted, name, make())
        if wanted != text:
            found[path] = wanted
    return found


if __name__ == "__main__":
    outdated = stale()
    for path, wanted in outdated.items():
        print(f"{path.relative_to(ROOT)}: not current")
        if "--check" not in sys.argv:
            path.write_text(wanted, encoding="utf-8")
    sys.exit(1 if outdated and "--check" in sys.argv else 0)
