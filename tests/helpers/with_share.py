"""The command line with a peer that has a share, whatever the labels say: for trainings in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgedistill.__main__ import main
from edgedistill.distill import peer

WEIGHT = 0.4
Judge = Callable[..., peer.Share]


def with_share(judge: Judge) -> Judge:
    """A judge of peers who gives every one WEIGHT."""
    return lambda *answers: replace(judge(*answers), weight=WEIGHT)


if __name__ == "__main__":
    peer.judge = with_share(peer.judge)
    main()
