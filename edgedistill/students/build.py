"""Students: models from their specs, with initial or trained weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.options import bound_options
from edgedistill.records import StudentSpec
from edgedistill.run import artifacts
from edgedistill.students.checkpoints import fit_state, read_state
from edgedistill.students.families import FAMILIES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn


def weights_problem(spec: StudentSpec) -> str:
    """Why the candidate's initial weights are not available on this machine, and the fix; "" if they are."""
    return FAMILIES[spec.family](**bound_options(FAMILIES[spec.family], spec.options)).weights_problem()


def initial_weights_license(spec: StudentSpec) -> str:
    """The license that the publisher of the student's initial weights states; "" if nobody does.

    Raises:
        InputError: the options are not of the spec's family.
    """
    family = FAMILIES.get(spec.family)
    return family(**bound_options(family, spec.options)).weights_license() if family else ""


def build_student(spec: StudentSpec, seed: int = 0, initialize: bool = False) -> nn.Module:
    """Build the student: normalized float [B, 3, px, px] to logits [B, C]; `backbone` and `head` are its two parts.

    Args:
        spec: the architecture.
        seed: seed of the random weights.
        initialize: load the family's initial weights into the backbone (else they stay random).
    """
    import torch
    from torch import nn

    blueprint = FAMILIES[spec.family](**bound_options(FAMILIES[spec.family], spec.options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = blueprint.build()
        head = nn.Linear(feature_width(backbone), spec.num_classes)
    if initialize and blueprint.initialize:
        blueprint.initialize(backbone)
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def feature_width(backbone: nn.Module) -> int:
    """D of the pooled features; timm's `head_hidden_size` if a net widens them after pooling (MobileNetV3, V4)."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def load_student(spec: StudentSpec, path: Path) -> nn.Module:
    """Load a trained student from its safetensors file, in eval mode.

    Raises:
        InputError: the file is missing or does not fit the spec.
    """
    model = build_student(spec)
    try:
        fit_state(model, read_state(path), str(path))
    except InputError as error:
        raise InputError(error.message, artifacts.TRAIN) from None
    return model.eval()


def shift_head(model: nn.Module, shift_C: NDArray[Any]) -> None:
    """Add a shift to the bias of the student's head: to its logits, in every graph that is made from it."""
    import torch

    bias_C = model.head.bias  # type: ignore[union-attr]
    assert isinstance(bias_C, torch.Tensor), "the head is a linear layer with a bias"
    with torch.no_grad():
        bias_C += torch.as_tensor(shift_C, dtype=bias_C.dtype, device=bias_C.device)


def require_finite_weights(model: nn.Module) -> None:
    """Raise EdgeDistillError if a weight is not finite: its training diverged, and no export can mend it."""
    import torch

    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise EdgeDistillError(
                f"the student's weights are not finite ({name})", "train it again with a smaller distill.lr"
            )
