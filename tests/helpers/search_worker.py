"""One worker of a shared search, as a process of its own: `python search_worker.py ADDRESS FOLDER LOG SECONDS [ID]`.

The candidates are those of test_search.py; training one is a sleep. LOG gets a line when a candidate begins and ends.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.search.search import Rungs, name_of, search
from tests.helpers.search_space import quality, space


def main() -> None:
    address, folder, log, seconds = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])

    def write_line(event: str, spec: StudentSpec) -> None:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()} {event} {name_of(spec)}\n")

    def objective(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        write_line("begins", spec)
        time.sleep(seconds)
        write_line("ends", spec)
        return quality(spec), {"standard_error": 0.0, "loss": 1.0}

    settings = Search(trials=24, storage=address, heartbeat_s=1)
    winner = search(
        space(),
        Budget(),
        settings,
        objective,
        seed=3,
        folder=folder,
        name="shared",
        identity=sys.argv[5] if len(sys.argv) > 5 else "one",
    )
    print(name_of(winner))


if __name__ == "__main__":
    main()
