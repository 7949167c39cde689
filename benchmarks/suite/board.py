"""The committed lines of the suite as boards, one a profile: method -> target -> seed -> points.

Only lines of one trial are compared: the newest line of a cell, the newest configuration of a method on a target, and
for each target the lines with the label budget, pack, student, initial weights and processor of its newest lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.suite.statistics import Targets

Line = Mapping[str, Any]

SCORES = ("top1", "balanced_accuracy")  # the first is the primary one
SINGLE = "single:"
TRIAL_FIELDS = ("labels_per_class", "n_test", "student", "initial", "pack", "cpu")


@dataclass(frozen=True, kw_only=True)
class Board:
    """The measurements of one profile, in points of one score.

    `runs` has the unchanged lines; `methods` the values; `draws` target -> seed -> the line of kind "draw".
    `left_out` counts the lines of older configurations and trials; reruns of the same cell are not counted.
    """

    profile: str
    score: str
    runs: tuple[Line, ...]
    methods: dict[str, Targets]
    draws: dict[str, dict[int, Line]]
    left_out: int

    @property
    def targets(self) -> list[str]:
        """Every target with a measurement, in alphabetical order."""
        return sorted({target for seeds in self.methods.values() for target in seeds} | self.draws.keys())

    def singles(self, target: str) -> dict[str, Mapping[int, float]]:
        """Source -> seed -> points of the student distilled from that source alone."""
        return {
            method.removeprefix(SINGLE): targets[target]
            for method, targets in self.methods.items()
            if method.startswith(SINGLE) and target in targets
        }

    def sources(self, target: str) -> list[str]:
        """The target's sources: those that its draws name, or else those that have a student of their own."""
        draws = self.draws.get(target, {}).values()
        names = {name for draw in draws for by_source in _by_source(draw) for name in by_source}
        return sorted(names or self.singles(target))


def boards(lines: Iterable[Line], score: str = SCORES[0]) -> list[Board]:
    """One board for each profile, in alphabetical order; lines of other kinds are ignored.

    Args:
        lines: parsed JSON lines of kind "run" and "draw".
        score: "top1" or "balanced_accuracy".
    """
    ordered = sorted((line for line in lines if line.get("kind") in ("run", "draw")), key=_time)
    profiles = sorted({str(line["profile"]) for line in ordered})
    return [_board(profile, score, [line for line in ordered if line["profile"] == profile]) for profile in profiles]


def _by_source(draw: Line) -> list[Mapping[str, Any]]:
    return [*draw.get("scores", {}).values(), draw.get("source_probes", {})]


def _time(line: Line) -> str:
    """Sort key: ISO times of one zone sort as text; lines without a time keep the order of the file."""
    return str(line.get("measured", ""))


def _board(profile: str, score: str, lines: Sequence[Line]) -> Board:
    runs, draws, left_out = _select_trial(lines)
    methods: dict[str, dict[str, dict[int, float]]] = {}
    for line in sorted(runs, key=lambda line: int(line["seed"])):
        methods.setdefault(line["method"], {}).setdefault(line["target"], {})[int(line["seed"])] = 100 * line[score]
    by_target: dict[str, dict[int, Line]] = {}
    for line in draws:
        by_target.setdefault(line["target"], {})[int(line["seed"])] = line
    return Board(
        profile=profile, score=score, runs=tuple(runs), methods=dict(methods), draws=by_target, left_out=left_out
    )


def _select_trial(lines: Sequence[Line]) -> tuple[list[Line], list[Line], int]:
    """The runs and draws of one trial, and the number of lines left out; `lines` are sorted by time."""
    configs = {_method_key(line): line.get("config") for line in lines}
    cells = {(*_method_key(line), line["seed"], line.get("config")): line for line in lines}
    trials: dict[str, dict[str, Any]] = {}
    for line in lines:
        trials.setdefault(line["target"], {}).update(_trial_fields(line))
    selected = [
        line
        for line in cells.values()
        if line.get("config") == configs[_method_key(line)]
        and _trial_fields(line).items() <= trials[line["target"]].items()
    ]
    runs, draws = ([line for line in selected if line["kind"] == kind] for kind in ("run", "draw"))
    return runs, draws, len(cells) - len(selected)


def _method_key(line: Line) -> tuple[str, str, str]:
    return line["kind"], line["target"], line.get("method", "")


def _trial_fields(line: Line) -> dict[str, Any]:
    """The fields that two lines must share to be compared, as far as the line has them: a draw has no student."""
    return {name: line[name] for name in TRIAL_FIELDS if line.get(name)}
