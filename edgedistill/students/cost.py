"""The cost of a candidate, counted on the meta device: no weights are allocated, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgedistill.errors import InputError
from edgedistill.records import Cost

if TYPE_CHECKING:
    from torch import nn

BYTES = 4  # size of a float32; an int8 graph takes a quarter of it
# runtimes fuse these operators into the one before them
FUSED = frozenset(
    {
        "add",
        "mul",
        "div",
        "sub",
        "relu",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "silu",
        "gelu",
        "sigmoid",
        "clamp",
        "_native_batch_norm_legit_no_training",
        "native_batch_norm",
        "leaky_relu",
        "_prelu_kernel",
    }
)
RISKS = {"hardswish": "hard-swish", "silu": "swish", "hardsigmoid": "squeeze-excite", "sigmoid": "squeeze-excite"}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a forward pass: its name, the buffers it reads, and the buffers it writes with their bytes."""

    name: str
    reads: frozenset[int]
    makes: dict[int, int]


@dataclass(kw_only=True)
class Trace:
    """A traced forward pass: its operators in order, and the buffers of its inputs with their bytes."""

    operators: list[Operator] = field(default_factory=list)
    inputs: dict[int, int] = field(default_factory=dict)


def measure(build: Callable[[], nn.Module], input_px: int, num_classes: int) -> Cost:
    """Cost of a backbone and a linear head for one image, as deployed: with merged branches where there are any.

    Multiply-accumulates (1 MAC = 2 FLOPs), parameters, fp32 megabytes of weights, and the peak of the activations.

    Raises:
        InputError: the backbone cannot take an image of this size.
    """
    import torch
    from timm.utils import reparameterize_model
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"):
            backbone = reparameterize_model(build().eval(), inplace=True)
            counter, image = FlopCounterMode(display=False), torch.empty(1, 3, input_px, input_px)
            with counter, torch.no_grad():
                trace, features = trace_forward(backbone, image)
    except (RuntimeError, ValueError, AssertionError, ArithmeticError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        problem = f"student: cannot be built at {input_px} px ({reason})"
        raise InputError(problem, "offer another input_px of this family, or another family") from None
    width = int(features.shape[1])
    head = width * num_classes
    parameters = sum(parameter.numel() for parameter in backbone.parameters()) + head + num_classes
    return Cost(
        macs_m=(counter.get_total_flops() / 2 + head) / 1e6,
        params_m=parameters / 1e6,
        weights_mb=parameters * BYTES / 1e6,
        activation_mb=peak_bytes(trace) / 1e6,
        int8_risks=int8_risks(trace),
    )


def trace_forward(module: nn.Module, image: Any) -> tuple[Trace, Any]:
    """Run the module on one image and record the buffers that each operator reads and writes, without weights."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    alive: list[torch.Tensor] = [*module.parameters(), *module.buffers()]  # a freed buffer's number is reused
    weights = {tensor.untyped_storage()._cdata for tensor in alive}
    trace = Trace(inputs={image.untyped_storage()._cdata: image.numel() * BYTES})
    unpadded: dict[int, int] = {}  # a convolution pads on reading: no padded buffer exists

    def buffers(tree: Any) -> dict[int, int]:
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        alive.extend(tensors)
        sizes = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() // tensor.element_size() * BYTES
            for tensor in tensors
        }
        return {unpadded.get(key, key): size for key, size in sizes.items() if key not in weights}

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            outputs = func(*args, **(kwargs or {}))
            reads, makes = buffers((args, kwargs)), buffers(outputs)
            name = func.overloadpacket.__name__.rstrip("_")
            if name == "constant_pad_nd" and reads:
                unpadded.update(dict.fromkeys(makes, next(iter(reads))))
            else:
                new = {buffer: size for buffer, size in makes.items() if buffer not in reads}
                trace.operators.append(Operator(name=name, reads=frozenset(reads), makes=new))
            return outputs

    with Watch():  # type: ignore[no-untyped-call]
        features = module(image)
    return trace, features


def peak_bytes(trace: Trace) -> int:
    """Peak bytes of live activations, if each buffer is freed after its last use.

    Models a runtime that fuses batch norm, activations and residual additions into the operator before them: such an
    operator overwrites an input of the same size that is not read later.
    """
    last = {buffer: index for index, operator in enumerate(trace.operators) for buffer in operator.reads}
    size = dict(trace.inputs)
    live, peak = set(trace.inputs), sum(trace.inputs.values())
    for index, operator in enumerate(trace.operators):
        size |= operator.makes
        dying = [buffer for buffer in operator.reads & live if last[buffer] == index]
        if operator.name in FUSED:
            for output in operator.makes:
                reused = next((buffer for buffer in dying if size[buffer] == size[output]), None)
                if reused is not None:
                    dying.remove(reused)
                    live.discard(reused)
        # unread outputs are not allocated: a batch norm's statistics, a max pooling's indices
        live |= {buffer for buffer in operator.makes if buffer in last or index == len(trace.operators) - 1}
        peak = max(peak, sum(size[buffer] for buffer in live))
        live -= set(dying)
    return peak


def int8_risks(trace: Trace) -> tuple[str, ...]:
    """The net's risks in int8: activations that runtimes compute in float, and gates with ranges of their own."""
    names = {operator.name for operator in trace.operators}
    return tuple(dict.fromkeys(risk for name, risk in RISKS.items() if name in names))
