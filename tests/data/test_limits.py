"""The limits of pictures of more than 8 bits are measured once over all pictures; nonsensical ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill.data.images import View
from edgedistill.data.limits import Decoder
from edgedistill.data.listing import Files
from edgedistill.errors import InputError

PX = 8


def deep_files(folder: Path, *pictures_HW: np.ndarray) -> Files:
    folder.mkdir()
    paths = [folder / f"{index}.tif" for index in range(len(pictures_HW))]
    for path, values_HW in zip(paths, pictures_HW, strict=True):
        Image.fromarray(values_HW).save(path)
    return Files(names=[path.name for path in paths], paths=[str(path) for path in paths], labels=[0] * len(paths))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_auto_range_is_measured_over_all_pictures(dtype: type, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    deep = [(generator.random((40, 50)) * high).astype(dtype) for high in (900, 3000, 500)]
    deep[1][0, 0] = 60000  # a hot pixel
    eight_bits = generator.integers(0, 255, (40, 50)).astype(np.uint8)
    items = deep_files(tmp_path / "set", deep[0], eight_bits, *deep[1:]).items()
    decoder = Decoder(items, View(px=PX, fit="crop"), "auto")
    assert decoder(1)[0] is not None and decoder.view.limits is None, "8 bits need no limits"
    assert decoder(3)[0] is not None
    expected = np.percentile(np.concatenate([values.ravel() for values in deep]), (0.1, 99.9), method="inverted_cdf")
    np.testing.assert_allclose(decoder.view.limits or (), expected, rtol=1e-6)
    assert decoder.view.limits is not None and decoder.view.limits[1] < 3100


def test_range_of_one_value_is_refused(tmp_path: Path) -> None:
    items = deep_files(tmp_path / "set", *[np.full((8, 8), 300, dtype=np.uint16)] * 2).items()
    with pytest.raises(InputError, match=r"data\.range: .* nearly all of their values are 300; set data\.range"):
        Decoder(items, View(px=PX, fit="crop"), "auto")(0)


def test_values_of_large_sets_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    deep = [(generator.random((100, 100)) * 10_000).astype(np.uint16) for _ in range(4)]
    items = deep_files(tmp_path / "set", *deep).items()
    monkeypatch.setattr("edgedistill.data.limits.SAMPLED_VALUES", 4 * 2000)
    decoder = Decoder(items, View(px=PX, fit="crop"), "auto")
    decoder(0)
    limits = decoder.view.limits
    assert limits is not None and limits[0] < 40 and limits[1] > 9960, "2,000 of 10,000 values come near the exact ones"


def test_picture_whose_values_cannot_be_read_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:45])
    items = Files(names=["cut.png"], paths=[str(tmp_path / "cut.png")], labels=[0]).items()
    square, reason = Decoder(items, View(px=PX, fit="crop"), "auto")(0)
    assert square is None and reason
