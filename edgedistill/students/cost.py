"""What a candidate costs, counted on the meta device: no weights are allocated, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgedistill.errors import InputError
from edgedistill.records import Cost

if TYPE_CHECKING:
    from torch import nn

BYTES = 4  # of a float32; an int8 graph takes a quarter of it
# runtimes compute these in the buffer of the operator before them, or in its epilogue
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
    """One operator of a forward pass: its name, the buffers it reads and those it makes, in bytes."""

    name: str
    reads: frozenset[int]
    makes: dict[int, int]


@dataclass(kw_only=True)
class Pass:
    """A forward pass as it was seen: operators in order, and the buffers that were there before."""

    operators: list[Operator] = field(default_factory=list)
    given: dict[int, int] = field(default_factory=dict)


def measure(build: Callable[[], nn.Module], input_px: int, num_classes: int) -> Cost:
    """What one image costs a backbone and a linear head, as deployed: branches merged where the family has any.

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
                seen, features = watch(backbone, image)
    except (RuntimeError, ValueError, AssertionError, ArithmeticError) as error:
        raise InputError(f"student: cannot be built at {input_px} px ({str(error).splitlines()[0]})") from None
    width = int(features.shape[1])
    head = width * num_classes
    parameters = sum(one.numel() for one in backbone.parameters()) + head + num_classes
    return Cost(
        macs_m=(counter.get_total_flops() / 2 + head) / 1e6,
        params_m=parameters / 1e6,
        weights_mb=parameters * BYTES / 1e6,
        activation_mb=peak_bytes(seen) / 1e6,
        int8_risks=int8_risks(seen),
    )


def watch(module: nn.Module, image: Any) -> tuple[Pass, Any]:
    """Run the module on one image and write down which operator reads and makes which buffers; weights are left out."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    kept: list[torch.Tensor] = [*module.parameters(), *module.buffers()]  # held: a freed buffer's number is used again
    weights = {one.untyped_storage()._cdata for one in kept}
    seen = Pass(given={image.untyped_storage()._cdata: image.numel() * BYTES})
    unpadded: dict[int, int] = {}  # a convolution pads as it reads: the padded image is never there

    def buffers(value: Any) -> dict[int, int]:
        tensors = [one for one in tree_leaves(value) if isinstance(one, torch.Tensor)]
        kept.extend(tensors)
        found = {
            one.untyped_storage()._cdata: one.untyped_storage().nbytes() // one.element_size() * BYTES
            for one in tensors
        }
        return {unpadded.get(key, key): size for key, size in found.items() if key not in weights}

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            reads, makes = buffers((args, kwargs)), buffers(made)
            name = func.overloadpacket.__name__.rstrip("_")
            if name == "constant_pad_nd" and reads:
                unpadded.update(dict.fromkeys(makes, next(iter(reads))))
            else:
                new = {buffer: size for buffer, size in makes.items() if buffer not in reads}
                seen.operators.append(Operator(name=name, reads=frozenset(reads), makes=new))
            return made

    with Watch():  # type: ignore[no-untyped-call]
        features = module(image)
    return seen, features


def peak_bytes(seen: Pass) -> int:
    """The most bytes of activations that are needed at once, if each buffer is freed after its last reader.

    The model of a runtime that folds batch norm, activations and residual additions into the operator before them:
    such an operator writes over an input of the same size that nobody reads later.
    """
    last = {buffer: at for at, one in enumerate(seen.operators) for buffer in one.reads}
    size = dict(seen.given)
    at_hand, peak = set(seen.given), sum(seen.given.values())
    for at, one in enumerate(seen.operators):
        size |= one.makes
        dying = [buffer for buffer in one.reads & at_hand if last[buffer] == at]
        if one.name in FUSED:
            for made in one.makes:
                over = next((buffer for buffer in dying if size[buffer] == size[made]), None)
                if over is not None:
                    dying.remove(over)
                    at_hand.discard(over)
        # what nobody reads is not made: a batch norm's statistics, a max pooling's indices
        at_hand |= {buffer for buffer in one.makes if buffer in last or at == len(seen.operators) - 1}
        peak = max(peak, sum(size[buffer] for buffer in at_hand))
        at_hand -= set(dying)
    return peak


def int8_risks(seen: Pass) -> tuple[str, ...]:
    """What int8 may cost this net: activations that runtimes compute in float, and gates with a range of their own."""
    names = {one.name for one in seen.operators}
    return tuple(dict.fromkeys(risk for name, risk in RISKS.items() if name in names))
