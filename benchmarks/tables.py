"""The tables of README.md, benchmarks/README.md and docs, made from the committed lines alone.

python -m benchmarks.tables            rewrite the text between the markers
python -m benchmarks.tables --check    exit 1 where a page is not current
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    engines,
    export_time,
    families,
    first_report,
    freed_memory,
    guard,
    input_path,
    interrupts,
    near_copies,
    own_models,
    predict_speed,
    quickstart,
    scale,
    step_cost,
)
from benchmarks.folds import table as folds_table
from benchmarks.gpu import table as gpu_table
from benchmarks.lines import read
from benchmarks.meter import table as meter_table
from benchmarks.pages import replace_section
from benchmarks.peer_torchdistill import table as peer_torchdistill_table
from benchmarks.quantize import alike, distilled, kernels, trained, whole
from benchmarks.quantize import table as quantize_table
from benchmarks.search import table as search_table
from benchmarks.suggest import table as suggest_table
from benchmarks.suite import table as suite_table
from benchmarks.unknown import table as unknown_table

ROOT = Path(__file__).parent.parent


def newest_quickstart() -> str:
    """The tables of the newest line of the quickstart."""
    return quickstart.table(list(read("quickstart"))[-1])


def newest_graphs() -> str:
    """The table of the graphs of the newest line of the quickstart."""
    return quickstart.graphs_table(list(read("quickstart"))[-1])


def short_suite() -> str:
    """The rows of the suite that the README shows."""
    return suite_table.headline(only=suite_table.SHORT)


def step_costs() -> str:
    """The table of what more sources cost a training step."""
    return step_cost.table(list(read("step_cost")))


def torchdistill() -> str:
    """The table of epochs compared with torchdistill's."""
    return peer_torchdistill_table.markdown(list(read("peer_torchdistill")))


def scales() -> str:
    """The table of what many images cost."""
    return scale.table(list(read("scale")))


def int8() -> dict[str, Callable[[], str]]:
    """The tables of docs/int8.md."""
    return {
        "quantize": lambda: quantize_table.markdown(list(read("quantize"))),
        "quantize-alike": lambda: alike.markdown(list(read(alike.KIND))),
        "quantize-kernels": lambda: kernels.markdown(read(kernels.KIND)),
        "quantize-trained": lambda: trained.markdown(read(trained.KIND)),
        "quantize-distilled": lambda: distilled.markdown(list(read(distilled.KIND))),
        "export_time": lambda: export_time.table(list(read(export_time.KIND))),
        "families": families.table,
        "quantize-whole": lambda: whole.markdown(list(read(whole.KIND))),
    }


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"quickstart-graphs": newest_graphs, "suite-short": short_suite},
    ROOT / "docs/getting-started.md": {
        "quickstart": newest_quickstart,
        "predict-speed": lambda: predict_speed.table(list(read(predict_speed.KIND))),
        "first-report": lambda: first_report.table(list(read(first_report.KIND))),
    },
    ROOT / "docs/methods.md": {"suite": suite_table.headline},
    ROOT / "docs/few-labels.md": {"suggest": suggest_table.table},
    ROOT / "docs/your-data.md": {"near-copies": near_copies.table},
    ROOT / "benchmarks/README.md": {
        "step_cost": step_costs,
        "freed_memory": lambda: freed_memory.table(list(read(freed_memory.KIND))),
        "peer_torchdistill": torchdistill,
        "gpu": lambda: gpu_table.markdown(read(gpu_table.KIND)),
        "meter": lambda: meter_table.markdown(read(meter_table.KIND)),
        "suggest": suggest_table.table,
        "suite": suite_table.headline,
        "search": search_table.markdown,
        "folds": folds_table.markdown,
        "guard": guard.table,
        "unknown": unknown_table.table,
        "interrupts": lambda: interrupts.table(list(read("interrupts"))),
    },
    ROOT / "docs/scale.md": {"scale": scales, "input-path": lambda: input_path.table(read(input_path.KIND))},
    ROOT / "docs/engines.md": {"engines": engines.table},
    ROOT / "docs/int8.md": int8(),
    ROOT / "docs/your-model.md": {"own-models": own_models.table},
}


def stale() -> dict[Path, str]:
    """Pages whose tables differ from what the committed lines give, with the text that each should have."""
    outdated = {}
    for path, tables in PAGES.items():
        text = current = path.read_text(encoding="utf-8")
        for name, make in tables.items():
            current = replace_section(current, name, make())
        if current != text:
            outdated[path] = current
    return outdated


if __name__ == "__main__":
    pages = stale()
    for path, current in pages.items():
        print(f"{path.relative_to(ROOT)}: not current")
        if "--check" not in sys.argv:
            path.write_text(current, encoding="utf-8")
    sys.exit(1 if pages and "--check" in sys.argv else 0)
