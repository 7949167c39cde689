"""The track of natural draws: labels as they come, and every method with the same knowledge of the classes' shares.

The claims were written down before any run. A row `-labels` takes the prior from its own labels, a row `-shares` knows
the shares in the target's pack; the rows without either know nothing. Methods are compared at the same knowledge.
"""

from __future__ import annotations

from benchmarks.suite import markdown, protocol
from benchmarks.suite.board import Board
from benchmarks.suite.contrasts import Claim

METHODS = ("transfer", "fixmatch", "weighted", "auto")
CLAIMS = (
    Claim(name="auto with the shares over auto", first="auto-shares", second="auto", at_least=2.0, number="N1"),
    Claim(name="auto with its labels' prior over auto", first="auto-labels", second="auto", number="N2"),
    Claim(
        name="auto over transfer, both with the shares",
        first="auto-shares",
        second="transfer-shares",
        at_least=5.0,
        number="N3",
    ),
    *(
        Claim(
            name=f"{method} with its labels' prior beside {method}",
            first=f"{method}-labels",
            second=method,
            margin=1.0,
            number=f"N4{part}",
        )
        for part, method in zip("abc", METHODS, strict=False)
    ),
)
ALSO = (
    *(
        Claim(name=f"{method} with the shares over {method}", first=f"{method}-shares", second=method)
        for method in METHODS[:3]
    ),
    Claim(name="auto over transfer, neither with a prior", first="auto", second="transfer"),
    Claim(
        name="auto over transfer, both with their labels' prior",
        first="auto-labels",
        second="transfer-labels",
    ),
)


def is_natural(board: Board) -> bool:
    """Whether a board's profile draws labels as they come."""
    known = (protocol.HERE / f"{board.profile}.yaml").is_file()
    return known and protocol.load(board.profile).labeled == "natural"


def tables(board: Board) -> str:
    """Methods by target; the claims; other differences; all differences by target."""
    if not board.methods:
        return markdown.NOTHING
    parts = (
        markdown.methods(board),
        markdown.claims(board, CLAIMS),
        markdown.unclaimed(board, ALSO),
        markdown.per_target(board, (*CLAIMS, *ALSO)),
    )
    return "\n\n".join(parts)
