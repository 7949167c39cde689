"""Nets divided into a stem and a tail to train, and nets that cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from edgedistill.sources.divided import Divided, divide
from edgedistill.sources.outputs import Tunable


class Skipping(nn.Module):
    """Its last part reads the images again, so that its first part cannot be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.last = nn.Linear(7, 20)
        self.classifier = nn.Linear(20, 500)

    def features(self, images_BCHW: Tensor) -> Tensor:
        pooled = [part.mean(dim=(2, 3)) for part in (self.first(images_BCHW), images_BCHW)]
        return torch.as_tensor(self.last(torch.cat(pooled, dim=1)))


def images(px: int = 32) -> Tensor:
    return torch.randn(4, 3, px, px, generator=torch.Generator().manual_seed(0))


def of_timm(name: str) -> Tunable:
    net = timm.create_model(name).eval().requires_grad_(False)
    features: Callable[[nn.Module, Tensor], Tensor] = lambda module, images_BCHW: module.forward_head(  # noqa: E731
        module.forward_features(images_BCHW), pre_logits=True
    )
    return Tunable(module=net, features=features)


def sizes(tunable: Tunable, divided: Divided) -> tuple[int, int]:
    """The number of trained parameters, and of all but those of the classifier, which are not trained."""
    trained = [parameter for parameter in divided.tail.parameters() if parameter.requires_grad]
    assert len(trained) == len(divided.trained)
    classifier = tunable.module.get_classifier()  # type: ignore[operator]
    of_classifier = sum(parameter.numel() for parameter in classifier.parameters())
    assert not any(parameter.requires_grad for parameter in divided.tail.get_classifier().parameters())  # type: ignore[operator]
    whole = sum(parameter.numel() for parameter in tunable.module.parameters())
    return sum(parameter.numel() for parameter in trained), whole - of_classifier


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "convnext_atto", "resnet10t"])
def test_tail_goes_on_from_the_stem_of_a_chain(name: str) -> None:
    tunable = of_timm(name)
    divided = divide(tunable, images())
    between = divided.stem(images())
    assert between.shape != images().shape
    torch.testing.assert_close(
        divided.features(divided.tail, between), tunable.features(tunable.module, images()), rtol=1e-4, atol=1e-5
    )
    trained, whole = sizes(tunable, divided)
    assert 0.75 * whole <= trained < whole


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "hrnet_w18_small", "test_vit"])
def test_parts_in_lists_are_parts(name: str) -> None:
    tunable = of_timm(name)
    trained, whole = sizes(tunable, divide(tunable, images(224 if "224" in name else 160)))
    assert trained >= 0.74 * whole  # some parameters of theirs enter no feature


class Tied(nn.Module):
    """Its second part, which is trained, has the weight of its first."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 24)
        self.first.weight = self.second.weight

    def features(self, images_BCHW: Tensor) -> Tensor:
        return torch.as_tensor(self.third(self.second(self.first(images_BCHW.flatten(1)[:, :8]))))


def test_part_with_a_weight_that_is_trained_stays_in_the_net() -> None:
    divided = divide(Tunable(module=Tied().eval(), features=Tied.features), images())
    assert set(divided.trained) == {"second.weight", "second.bias", "third.weight", "third.bias"}
    assert torch.equal(divided.stem(images()), images())


def test_net_itself_stays_as_it_is() -> None:
    tunable = of_timm("test_resnet")
    before = tunable.features(tunable.module, images())
    divided = divide(tunable, images())
    for parameter in divided.tail.parameters():
        with torch.no_grad():
            parameter.zero_()
    assert torch.equal(tunable.features(tunable.module, images()), before)
    assert not any(parameter.requires_grad for parameter in tunable.module.parameters())


@pytest.mark.parametrize("name", ["skipping", "test_vit"])
def test_net_that_is_no_chain_is_computed_as_a_whole(name: str) -> None:
    px = 32 if name == "skipping" else 160
    tunable = of_timm(name) if name != "skipping" else Tunable(module=Skipping().eval(), features=Skipping.features)
    divided = divide(tunable, images(px))
    assert torch.equal(divided.stem(images(px)), images(px))
    torch.testing.assert_close(divided.features(divided.tail, images(px)), tunable.features(tunable.module, images(px)))
    assert not [name for name in divided.trained if name.startswith(("head.", "classifier."))]
    if name == "skipping":
        assert divided.trained == ("last.weight", "last.bias")
