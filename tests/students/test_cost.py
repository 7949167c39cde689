"""Costs without weights: the peak of activations worked out by hand, merged branches, and int8 risks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgedistill.errors import InputError
from edgedistill.recipe.schema import Student
from edgedistill.students import cost
from edgedistill.students.space import candidates, over_budget

PX = 16
PLANE = PX * PX * 4  # bytes of one float32 channel


class Net(nn.Module):
    """Two convolutions, 3 -> 8 -> 4 channels, with modules of the test between and after them."""

    def __init__(self, between: nn.Module, tail: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.between, self.behind = between, tail

    def forward(self, images: Tensor) -> Tensor:
        narrow = self.stem(images)
        return self.behind(self.second(self.between(self.first(narrow))), narrow).mean((2, 3))


def peak(between: nn.Module, tail: Callable[[Tensor, Tensor], Tensor]) -> int:
    with torch.device("meta"), torch.no_grad():
        trace, _ = cost.trace_forward(Net(between, tail).to("meta").eval(), torch.empty(1, 3, PX, PX))
    return cost.peak_bytes(trace)


def test_peak_by_hand() -> None:
    def straight(wide: Tensor, narrow: Tensor) -> Tensor:
        return wide

    # first reads 4 channels and makes 8; second reads 8 and makes 4: 12 planes either way
    assert peak(nn.Identity(), straight) == 12 * PLANE
    # modules folded into the convolution before them share its buffer, in place or not
    assert peak(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.ReLU6(inplace=True)), straight) == 12 * PLANE
    # a shortcut keeps its 4 channels alive while second reads 8 and makes 4
    assert peak(nn.ReLU(), torch.add) == 16 * PLANE
    # pooling needs its own buffer: 8 read, 8 written
    assert peak(nn.AvgPool2d(3, 1, padding=1), straight) == 16 * PLANE
    # max pooling too; its indices are not stored
    assert peak(nn.MaxPool2d(3, 1, padding=1), straight) == 16 * PLANE
    # a padded image is never stored: first makes 8, second reads those and makes 4 larger ones, 18 x 18 each
    assert peak(nn.ZeroPad2d(1), straight) == 8 * PLANE + 4 * 18 * 18 * 4


def test_buffer_that_is_read_again_is_not_overwritten() -> None:
    class Twice(nn.Module):
        def forward(self, wide: Tensor) -> Tensor:
            return torch.relu(wide) + torch.cat([wide, wide], 1)[:, :8]

    # wide (8), its relu (8), and the 16 of the concatenation, all at once
    assert peak(Twice(), lambda wide, narrow: wide) == 32 * PLANE


def test_peak_grows_with_image_size_and_not_with_classes() -> None:
    families = {"micro": {"width": 8, "input_px": [16, 32]}}
    few, many = (candidates(Student(families=families), classes) for classes in (2, 200))
    assert [spec.cost.activation_mb for spec in few] == [spec.cost.activation_mb for spec in many]
    assert few[1].cost.activation_mb == pytest.approx(4 * few[0].cost.activation_mb)
    budget = Student.model_fields["budget"].annotation
    assert budget is not None
    assert over_budget(few[1].cost, budget(activation_mb=few[0].cost.activation_mb)) == {"activation_mb": 4.0}


@pytest.mark.parametrize(("reason", "told"), [((), "AssertionError"), (("too small\nfor this",), "too small")])
def test_net_that_cannot_take_the_size_says_why(reason: tuple[str, ...], told: str) -> None:
    class Refusing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError(*reason)  # as by `assert condition`, with or without a message

    with pytest.raises(InputError, match=rf"cannot be built at 16 px \({told}\); offer another input_px"):
        cost.measure(Refusing, PX, 2)


def test_costs_count_merged_branches() -> None:
    # RepVGG-A0 as deployed: 8.31 M parameters and 1.36 G MACs at 224 px (Ding et al. 2021, table 4: 8.30, 1.4)
    [spec] = candidates(Student(families={"repvgg": {"size": "a0", "weights": "none", "input_px": 224}}), 1000)
    assert (spec.cost.params_m, spec.cost.macs_m) == pytest.approx((8.31, 1361), rel=1e-3)


@pytest.mark.parametrize(
    ("family", "options", "risks"),
    [
        ("mobilenetv3", {"size": "small_050"}, {"hard-swish", "squeeze-excite"}),
        ("tinynet", {"size": "e"}, {"swish", "squeeze-excite"}),
        ("regnet", {"kind": "y"}, {"squeeze-excite"}),
        ("regnet", {"kind": "x"}, set()),
        ("mobilenetv4", {"size": "conv_small_050"}, set()),
    ],
)
def test_int8_risks_are_listed(family: str, options: dict[str, str], risks: set[str]) -> None:
    [spec] = candidates(Student(families={family: {**options, "weights": "none", "input_px": 64}}), 10)
    assert set(spec.cost.int8_risks) == risks
