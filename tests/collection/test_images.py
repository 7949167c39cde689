"""What an audit and a suggestion share: brightness, places of pictures in other stores, and the data set of a run."""

from __future__ import annotations

import numpy as np

from edgedistill.collection.features import places_of
from edgedistill.collection.images import BLANK, DARK, brightness
from edgedistill.collection.subject import of_recipe, of_run
from edgedistill.data.image_store import PickedImages
from edgedistill.run.directory import Run
from tests.helpers.miniature import Project


def test_brightness_tells_blank_and_dark_pictures() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    images_NHWC = np.stack([noise, np.full_like(noise, 140), noise // 11])
    levels = brightness(images_NHWC)
    assert (levels.deviation_N < BLANK).tolist() == [False, True, False]
    assert (levels.bright_N < DARK).tolist() == [False, False, True]
    assert levels.mean_N[1] == 140.0
    picked = brightness(PickedImages(images_NHWC, np.array([2, 0])))  # type: ignore[arg-type]
    assert np.allclose(picked.mean_N, levels.mean_N[[2, 0]])


def test_places_of_hashes_in_another_store() -> None:
    stored = np.array([b"c", b"a", b"b"])
    assert places_of(np.array([b"a", b"x", b"c", b"zz"]), stored).tolist() == [1, -1, 0, -1]


def test_data_set_of_a_run_is_that_of_its_recipe(project_copy: Project) -> None:
    by_run = of_run(project_copy.run)
    recipe, base = Run(path=project_copy.run).recipe()
    by_recipe = of_recipe(project_copy.recipe, recipe, base, project_copy.runs)
    assert (by_run.data, by_run.base, by_run.sources, by_run.seed) == (
        by_recipe.data,
        by_recipe.base,
        by_recipe.sources,
        by_recipe.seed,
    )
    assert by_run.run is not None and by_recipe.run is not None
    assert by_run.run.path.name == by_recipe.run.path.name
