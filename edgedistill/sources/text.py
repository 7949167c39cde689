"""The source kind `text`: an image-text model that labels every image by the target's own class names (zero-shot).

A class is the mean of the texts that its name gives in the prompts; an image's probabilities are the softmax of its
similarities to the classes, as in CLIP (Radford et al., ICML 2021, section 3.1). The models are open_clip's.

B images, K classes of the target, P prompts, D size of the embedding.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.distributed.device import autocast, default_device
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean
from edgedistill.recipe.schema import Recipe, Source
from edgedistill.run.files import digest
from edgedistill.sources.outputs import Network
from edgedistill.students.checkpoints import fit_state, hash_state, read_state
from edgedistill.students.pretrained import repository_problem

if TYPE_CHECKING:
    from torch import Tensor, nn

PROMPTS = ("a photo of a {}.",)
NUMBER = re.compile(r"^(\d{2,}[\s._-]+|\d+\.)(?=\D)")  # "001.Black_footed_Albatross"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Published weights of an image-text model: the hub repository, and the side of the images in pixels."""

    repository: str
    input_px: int


def text(
    base: Path,
    *,
    model: str,
    pretrained: str | None = None,
    file: Path | None = None,
    prompts: tuple[str, ...] = PROMPTS,
    classes: tuple[str, ...] | None = None,
) -> Network:
    """An image-text model of open_clip: pseudo-labels from the names of the target's classes; no label is used.

    Its features are the image's embedding with these probabilities beside it, so that the teachers, too, start from
    what the names say. It needs `pip install "edgedistill[clip]"`.

    Args:
        base: the recipe's folder.
        model: the model's name in open_clip, such as `ViT-B-32`.
        pretrained: open_clip's name of the weights, such as `laion2b_s34b_b79k`; they come from the hub.
        file: a weights file, instead of `pretrained`.
        prompts: texts in which a class's name takes the place of `{}`; several are averaged.
        classes: names of the classes, instead of those of the data; in their order.
    """
    if not classes:
        raise InputError("has no class names", "leave `classes` out to take those of the data")
    unusable = [prompt for prompt in prompts if "{}" not in prompt]
    if unusable or not prompts:
        raise InputError(f"prompts: {unusable} do not say where the name goes", 'write "{}" there')
    net, tokenizer = _load(model, pretrained, file)
    identity = digest([hash_state(net, model), list(prompts), list(classes)])
    settings = _settings(net)
    net.eval().requires_grad_(False).to(default_device())
    names_KD = _classes(net, tokenizer, prompts, classes)
    scale = net.logit_scale.detach().exp()  # type: ignore[operator]

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        embeddings_BD = net.encode_image(images_BCHW, normalize=True)  # type: ignore[operator]
        with autocast(images_BCHW.device, "float32"):  # the scale makes a cosine's rounding a hundred times larger
            embeddings_BD = embeddings_BD.float()
            probs_BK = (scale * embeddings_BD @ names_KD.T).softmax(dim=1)
        return torch.cat([embeddings_BD, probs_BK], dim=1), probs_BK

    return Network(
        forward=forward,
        input_px=int(settings["size"][0]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        sha256=identity,
    )


def is_installed() -> bool:
    """Whether open_clip is installed."""
    return importlib.util.find_spec("open_clip") is not None


def registered(model: str, pretrained: str) -> Pair:
    """Published weights in open_clip's registry.

    Raises:
        InputError: open_clip is not installed, or knows no such model or no such weights of it.
    """
    import_open_clip()
    import open_clip

    require_model(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise InputError(f"open_clip has no weights {pretrained} of {model}{did_you_mean(pretrained, tags)}")
    repository = open_clip.get_pretrained_cfg(model, pretrained).get("hf_hub") or ""
    size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    px = size if isinstance(size, int) else size[0]
    return Pair(repository="/".join(repository.split("/")[:2]), input_px=int(px))


def require_model(model: str) -> None:
    """Raise InputError with the nearest name if open_clip is not installed, or has no such model."""
    import_open_clip()
    import open_clip

    if model not in open_clip.list_models():
        raise InputError(f"open_clip has no model {model}{did_you_mean(model, open_clip.list_models())}")


def import_open_clip() -> None:
    """Raise InputError if open_clip is not installed."""
    if not is_installed():
        raise InputError("kind text needs the package open_clip_torch", 'pip install "edgedistill[clip]"')


def require_reachable(model: str, pretrained: str | None, file: Path | None) -> None:
    """Raise InputError if open_clip has no such model, or its weights are not available."""
    require_model(model)
    if (pretrained is None) == (file is None):
        raise InputError("kind text needs either `pretrained` or `file`")
    if file is not None and not file.is_file():
        raise InputError(f"{file}: is not a file", "check `file`")
    if pretrained is not None:
        problem = repository_problem(registered(model, pretrained).repository)
        if problem:
            raise InputError(f"{model}: {problem}")


def with_class_names(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with the data's class names in its text sources that name none."""
    if all(section.kind != "text" or section.options.get("classes") for section in recipe.sources):
        return recipe
    from edgedistill.data import datasets

    classes = list(datasets.listing(recipe.data, base).classes)

    def named(section: Source) -> Source:
        if section.kind != "text" or section.options.get("classes"):
            return section
        return Source.model_validate({**section.model_dump(), "classes": classes})

    return recipe.model_copy(update={"sources": tuple(map(named, recipe.sources))})


def readable(name: str) -> str:
    """A class's name as a text: `001.Black_footed_Albatross` gives "Black footed Albatross"."""
    return " ".join(NUMBER.sub("", name).replace("_", " ").split()) or name


def _load(model: str, pretrained: str | None, file: Path | None) -> tuple[nn.Module, Any]:
    require_reachable(model, pretrained, file)
    import open_clip

    try:
        with _silent():
            net: nn.Module = open_clip.create_model(model, pretrained=pretrained, load_weights=file is None)
            tokenizer = open_clip.get_tokenizer(model)
    except (RuntimeError, OSError, ImportError) as error:
        raise InputError(f"{model}: open_clip cannot load it ({str(error).strip().splitlines()[0]})") from None
    if file is not None:
        fit_state(net, read_state(file), str(file))
    return net, tokenizer


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """open_clip warns on the root logger of random weights, even where a file's replace them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _settings(net: nn.Module) -> dict[str, Any]:
    import open_clip

    settings: dict[str, Any] = open_clip.get_model_preprocess_cfg(net)
    return settings


def _classes(net: nn.Module, tokenizer: Any, prompts: Sequence[str], classes: Sequence[str]) -> Tensor:
    """The mean embedding of each class's texts, of unit length, [K, D]."""
    import torch

    rows = []
    with torch.inference_mode():
        for name in classes:
            texts_PT = tokenizer([prompt.replace("{}", readable(name)) for prompt in prompts])
            texts_PD = net.encode_text(texts_PT.to(default_device()), normalize=True)  # type: ignore[operator]
            rows.append(torch.nn.functional.normalize(texts_PD.mean(dim=0), dim=0))
    return torch.stack(rows)
