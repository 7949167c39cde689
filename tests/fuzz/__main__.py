"""The command line of the fuzzers: see the text of the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz import batch, kinds


def main() -> int:
    """Run a batch of inputs, or one of them, or a file; exit with 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="hostile inputs, made by a seed")
    parser.add_argument("kind", choices=kinds.NAMES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, help="how many, besides the crafted ones; default: as in the slow tier")
    parser.add_argument("--only", type=int, metavar="INDEX", help="this input alone, here, with its traceback")
    parser.add_argument("--file", type=Path, help="a saved input, here, with its traceback")
    parser.add_argument("--limit", type=float, default=batch.LIMIT_S, help="seconds for an input; default: %(default)g")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--range", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kind = kinds.load(options.kind)
    if options.work:
        indices = range(*map(int, options.range.split(":")))
        batch.work(kind, options.seed, indices, folder=options.work, limit_s=options.limit)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if options.file or options.only is not None:
            content = options.file.read_bytes() if options.file else kind.input(options.seed, options.only)
            batch.prepare(kind, Path(folder))
            refused, problem = batch.judged(kind, content, Path(folder))
            print(problem or (f"refused: {refused}" if refused else "accepted"))
            return int(bool(problem))
        indices = kind.indices(options.inputs)
        outcomes = batch.run_children(kind, options.seed, indices, Path(folder), limit_s=options.limit)
    print(outcomes.report())
    return int(bool(outcomes.failures))


if __name__ == "__main__":
    sys.exit(main())
