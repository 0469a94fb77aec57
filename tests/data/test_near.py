"""Near duplicates: what is found, what is told apart, how long it takes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cass_scale.data.look import SIDE, look
from cass_scale.data.near import TURNS, near
from tests.data.copies import ALTERED


def blobs(number: int, seed: int = 0, side: int = 96) -> list[Image.Image]:
    """Smooth random pictures, as unlike each other as chance makes them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 12, 12), dtype=np.uint8)
    return [Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC) for c in coarse]


def thumbs(images: list[Image.Image]) -> NDArray[np.uint8]:
    found = [look(np.asarray(image.convert("RGB"))).thumb for image in images]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, SIDE * SIDE)


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_copy_is_found(how: str) -> None:
    images = blobs(20)
    found = near(thumbs([*images, *(ALTERED[how](image) for image in images)]))
    assert sorted((n.first, n.second) for n in found) == [(i, i + 20) for i in range(20)]


@pytest.mark.parametrize("number", range(8))
def test_the_turn_is_named(number: int) -> None:
    square = thumbs(blobs(1)).reshape(SIDE, SIDE)
    turned = np.rot90(np.fliplr(square) if number >= 4 else square, number % 4)
    (found,) = near(np.stack([square.ravel(), turned.ravel()]))
    assert found.turn == TURNS[number] and found.correlation == pytest.approx(1.0, abs=1e-3)  # kept in 16 bits


def test_a_change_that_a_reader_would_see_is_no_copy() -> None:
    images = blobs(20)
    for image in images:
        image.paste(255 - np.asarray(image)[10, 10].item(), (10, 10, 42, 42))
    assert near(thumbs([*images, *blobs(20)])) == []


def test_blank_images_are_not_compared() -> None:
    grey = [Image.new("L", (40, 40), value) for value in (0, 90, 90, 255)]
    assert near(thumbs(grey)) == []


def test_many_alike_make_one_chain() -> None:
    one = thumbs(blobs(1))
    found = near(np.repeat(one, 300, axis=0))
    assert len(found) == 299 and {n.turn for n in found} == {"as it is"}


def test_twenty_five_thousand_take_seconds() -> None:
    numbers = np.random.default_rng(0)
    many = numbers.integers(0, 256, (25_000, SIDE * SIDE), dtype=np.uint8)
    copied = numbers.choice(25_000, 40, replace=False).reshape(2, 20)
    mirrored = many[copied[0]].reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE * SIDE)
    many[copied[1]] = np.clip(mirrored.astype(int) + numbers.integers(-8, 9, mirrored.shape), 0, 255)
    begun = time.process_time()  # of this process alone: others may keep the cores busy
    found = near(many)
    assert time.process_time() - begun < 30
    assert {frozenset((n.first, n.second)) for n in found} == {frozenset(pair) for pair in copied.T.tolist()}
    assert {n.turn for n in found} == {"mirrored"}
