"""Measure everything that needs a GPU, piece by piece, in the order in which the pieces are worth their minutes.

    python -m benchmarks.gpu pack OUT --packs DIR        before, for a machine without network: packs and wheels, 60 MB
    python -m benchmarks.gpu --minutes 9 --packs DIR     appends a line a measurement; the same command goes on
    python -m benchmarks.gpu --rehearse OUT --packs DIR  without a GPU: tiny sizes, the lines go to OUT

The order: tier `gpu`; training beside a bare loop; the suite; ONNX Runtime with CUDA, TensorRT, TensorRT-RTX where
present, with energy where NVML has it; source inference. A piece that has lines of this GPU and commit is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks import lines
from benchmarks.gpu import pack, table
from benchmarks.gpu.pieces import Piece, Settings, pieces
from benchmarks.scale import device_name
from edgedistill.console import say
from edgedistill.distributed.device import has_gpu
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.run import environment


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", nargs="?", choices=["run", "pack"], default="run")
    parser.add_argument("out", nargs="?", type=Path, help="the folder that `pack` fills")
    parser.add_argument(
        "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece that may end later")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="weights and outputs of the suite")
    parser.add_argument("--rehearse", type=Path, metavar="OUT", help="tiny sizes on this machine; lines go to OUT")
    parser.add_argument("--targets", nargs="+", default=list(pack.PACKS), help="the packs that `pack` takes")
    parser.add_argument("--wheels", nargs="*", default=list(pack.WHEELS), help="the wheels that `pack` takes")
    return parser.parse_args(argv)


def measured() -> set[str]:
    """The pieces that have lines of this GPU and commit."""
    here, commit = device_name(), environment.commit()
    return {
        line["piece"]
        for line in lines.read(table.KIND)
        if (line["where"], line["commit"]) == (here, commit) and line.get("complete")
    }


def run_piece(piece: Piece, settings: Settings) -> None:
    """Measure a piece and append its lines; the last one says that it is complete. A failure is a line, too."""
    started, facts = time.monotonic(), {"piece": piece.name, "where": device_name()}
    try:
        for line in piece.measure(settings):
            lines.append(table.KIND, {**facts, **line})
    except (EdgeDistillError, RuntimeError, OSError) as error:
        # the next piece is worth its minutes, too
        lines.append(table.KIND, {**facts, "failed": f"{type(error).__name__}: {error}"[:1000]})
        say(f"{piece.name}: failed; {error}")
        return
    lines.append(table.KIND, {**facts, "complete": True, "took_s": round(time.monotonic() - started, 1)})
    say(f"{piece.name}: {time.monotonic() - started:.0f} s")


def main(argv: list[str] | None = None) -> int:
    """Measure what has no lines yet, for as long as there is time; returns the exit status."""
    options = arguments(argv)
    if options.verb == "pack":
        if options.out is None:
            raise InputError("pack: names no folder", "python -m benchmarks.gpu pack OUT --packs DIR")
        pack.pack(options.out, options.packs, options.targets, options.wheels)
        return 0
    rehearsal = options.rehearse is not None
    if rehearsal:
        lines.RESULTS = options.rehearse
    elif not has_gpu():
        raise InputError("torch finds no GPU", "--rehearse OUT tries the command without one")
    end = time.monotonic() + 60 * options.minutes
    settings = Settings(packs=options.packs, runs=options.runs, end=end, rehearsal=rehearsal)
    if rehearsal:
        settings = Settings(packs=options.packs, runs=options.runs, end=end, rehearsal=True, steps=1, rounds=2, warm=1)
    done = measured()
    for piece in pieces(rehearsal):
        if piece.name in done:
            say(f"{piece.name}: has lines of this commit")
        elif settings.minutes_left < piece.least_minutes:
            say(f"{piece.name}: no time left; the same command goes on here")
        else:
            run_piece(piece, settings)
    say(json.dumps({"lines": str(lines.RESULTS), "complete": sorted(measured())}))
    return 0


if __name__ == "__main__":
    lines.run_program(main)
