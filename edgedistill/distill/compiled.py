"""The net that a training step runs: as it is written, or compiled by torch.compile (`distill.compile`).

The compiled net has the parameters and buffers of the plain one, so that checkpoints, running means and exports do not
know of it. torch compiles when the net is first called; where that fails, the training goes on with the plain net.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgedistill.console import say
from edgedistill.distributed import processes
from edgedistill.errors import EdgeDistillError

BACKEND = "inductor"  # torch's own; it needs a C++ compiler for a CPU and Triton for a GPU
COMPILERS = ("torch._dynamo", "torch._inductor")


@dataclass(kw_only=True)
class TrainingNet:
    """The module of student and heads that is trained.

    Attributes:
        plain: the module; with several processes it averages gradients.
        compiled: the same module compiled; None if it is not to be, or cannot be.
    """

    plain: nn.Module
    compiled: Any = None

    @property
    def module(self) -> nn.Module:
        """What a step runs."""
        return self.plain if self.compiled is None else self.compiled

    def goes_on_after(self, error: BaseException) -> bool:
        """Go on with the plain module if this is an error of torch.compile, and say so; False for another error.

        Raises:
            EdgeDistillError: several processes share the training: the others would go on compiled.
        """
        if self.compiled is None or not is_of_compiler(error):
            return False
        problem = f"distill.compile: torch cannot compile the student ({reason(error)})"
        if processes.team().size > 1:
            raise EdgeDistillError(problem, "set distill.compile: false") from None
        say(f"  {problem}; the training goes on without")
        self.compiled = None
        return True


def training_net(plain: nn.Module, compiles: bool) -> TrainingNet:
    """The net of a training, compiled if `compiles`; what was compiled for an earlier training is forgotten."""
    net = TrainingNet(plain=plain)
    if compiles:
        torch.compiler.reset()  # all students are one piece of code to torch, which it compiles a few times at most
        try:
            net.compiled = torch.compile(plain, backend=BACKEND)
        except RuntimeError as error:  # of a Python that torch.compile does not know
            say(f"  distill.compile: {reason(error)}; the training goes on without")
    return net


def is_of_compiler(error: BaseException) -> bool:
    """Whether an error is one of torch.compile's own classes."""
    return any(kind.__module__.startswith(COMPILERS) for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """The first line of an error that says more than which backend raised it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("backend=")), type(error).__name__)
