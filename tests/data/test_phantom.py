"""The embedded phantom: its shape, its determinism, and that two processes may make it at once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cass_scale.data import phantom, sources
from cass_scale.data.decode import read_image
from cass_scale.data.manifest import Manifest
from cass_scale.errors import ConfigError


@pytest.fixture(scope="module")
def small() -> Manifest:
    return sources.phantom(images=198, scale=0.1)


def test_it_has_the_shape_of_the_papers_set(small: Manifest) -> None:
    assert (len(small), len(set(small.groups)), small.multilabel) == (198, 7, True)
    assert small.classes == ("b", "other", "tfh", "tfh217", "tfhl")
    assert all(small.labels) and any("|" in label for label in small.labels)
    assert len(set(zip(small.groups, small.splits, strict=True))) == 7  # a patient has one split
    assert Counter(small.splits)["train"] in range(112, 171) and set(small.splits) == {"train", "val", "test"}


def test_every_class_is_in_every_split(small: Manifest) -> None:
    for split in ("train", "val", "test"):
        assert small.label_tensor()[small.rows(split)].sum(0).min() >= 2


def test_it_says_that_it_is_synthetic(small: Manifest) -> None:
    assert small.synthetic and small.name == "phantom"
    assert small.notes[0].startswith("synthetic images")


def test_full_size_is_352_by_469_rgb_tiff() -> None:
    m = sources.phantom(images=1)
    with Image.open(m.root / m.keys[0]) as image:
        assert (image.format, image.mode, image.size) == ("TIFF", "RGB", (469, 352))
    pixels = read_image(m.root / m.keys[0], None)
    assert 10 < pixels.mean() < 90 and pixels.max() > 150  # dark field, bright stain


def test_an_image_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    one, classes = phantom.draw(5, 2, scale=0.2, seed=0)
    again, _ = phantom.draw(5, 2, scale=0.2, seed=0)
    assert np.array_equal(one, again) and classes == sorted(classes)
    for other in (phantom.draw(6, 2, scale=0.2, seed=0), phantom.draw(5, 2, scale=0.2, seed=1)):
        assert not np.array_equal(one, other[0])
    phantom.generate(tmp_path, images=3, scale=0.1, seed=0)
    assert np.array_equal(
        read_image(tmp_path / "images/biopsy_0001.tif", None), phantom.draw(1, 2, scale=0.1, seed=0)[0]
    )


def test_patients_look_different(small: Manifest) -> None:
    """Mean colour tells the patient better than chance: images of one patient must not lie in two splits."""
    colour = np.array([read_image(small.root / k, None).mean((0, 1)) for k in small.keys])
    patient = small.group_tensor().numpy()
    centres = np.array([colour[patient == p].mean(0) for p in range(7)])
    nearest = ((colour[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == patient).mean() > 0.5  # chance: 0.14


def test_a_stained_class_shows_its_stain() -> None:
    """Green pixels with b, fewer without: the label is in the image, and debris makes it no threshold."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(60):
        pixels, classes = phantom.draw(number, number % 7, scale=0.3, seed=0)
        red, green, blue = pixels.astype(float).transpose(2, 0, 1)
        found["b" in classes or "tfh217" in classes].append(float((green > 1.4 * np.maximum(red, blue) + 30).mean()))
    with_, without = np.array(found[True]), np.array(found[False])
    assert np.median(with_) > 3 * np.median(without)
    assert without.max() > 0  # debris


def test_made_at_once_by_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASS_SCALE_CACHE", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: sources.phantom(images=12, scale=0.1), range(4)))
    assert all(m == made[0] for m in made) and len(made[0]) == 12
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["phantom-12-x0.1-seed0-v1"]  # nothing temporary stays


def test_a_generator_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASS_SCALE_CACHE", str(tmp_path))
    monkeypatch.setattr(phantom, "draw", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sources.phantom(images=2, scale=0.1)
    assert list((tmp_path / "sets").iterdir()) == []


def test_impossible_sizes_name_the_keys() -> None:
    with pytest.raises(ConfigError, match=r"data.images=0 .* data.scale=1"):
        sources.phantom(images=0)
