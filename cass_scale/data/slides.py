"""Whole-slide images: one tile -> 8 bit RGB, tiles without tissue left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openslide import PROPERTY_NAME_MPP_X, OpenSlide
from PIL import Image

from cass_scale.data.decode import MAX_PIXELS, BadImage, Pixels, refuse_bomb
from cass_scale.data.parts import Tile, Tiles

WHITE = 220  # a pixel with a darker channel is tissue; glass is about 240


def load(path: Path) -> OpenSlide:
    """Its levels; no pixel is decoded yet. Raises what OpenSlide raises."""
    return OpenSlide(path)


def tiles(slide: OpenSlide, how: Tiles) -> Iterator[tuple[Tile, bool]]:
    """Tiles in rows, and whether each is empty: mostly glass. Raises BadImage."""
    level, size = _level(slide, how)
    width, height = slide.level_dimensions[level]
    refuse_bomb(size, size)
    tissue = _tissue(slide) if how.tissue > 0 else None
    step = size * slide.level_downsamples[level]
    for row in range(height // size):
        for column in range(width // size):
            tile = Tile(level, round(column * step), round(row * step), size)
            share = 1.0 if tissue is None else _share(tissue, slide, tile, step)
            yield tile, share < how.tissue


def _level(slide: OpenSlide, how: Tiles) -> tuple[int, int]:
    """Level to read, and side of a tile there."""
    if how.mpp is None:
        if how.level >= slide.level_count:
            raise BadImage(f"a slide of {slide.level_count} levels has no level {how.level} (data.tiles.level)")
        return how.level, how.size
    known = slide.properties.get(PROPERTY_NAME_MPP_X)
    if known is None:
        raise BadImage("a slide that does not tell its resolution; give data.tiles.level instead of data.tiles.mpp")
    down = how.mpp / float(known)
    level = slide.get_best_level_for_downsample(down)
    return level, max(1, round(how.size * down / slide.level_downsamples[level]))


def _tissue(slide: OpenSlide) -> NDArray[np.bool_]:
    """Where the smallest level is not glass: [H, W]."""
    last = slide.level_count - 1
    width, height = slide.level_dimensions[last]
    if width * height > MAX_PIXELS:
        raise BadImage(f"the smallest level of the slide, {width}x{height}, is too large to look for tissue in")
    glass: NDArray[np.bool_] = _region(slide, Tile(last, 0, 0, 0), (width, height)).min(2) >= WHITE
    return ~glass


def _share(tissue: NDArray[np.bool_], slide: OpenSlide, tile: Tile, side: float) -> float:
    down = slide.level_downsamples[-1]
    top, left = int(tile.y / down), int(tile.x / down)
    bottom, right = max(top + 1, round((tile.y + side) / down)), max(left + 1, round((tile.x + side) / down))
    return float(tissue[top:bottom, left:right].mean())


def render(slide: OpenSlide, tile: Tile) -> Pixels:
    """uint8 [size, size, 3]; white where nothing was scanned."""
    refuse_bomb(tile.size, tile.size)
    return _region(slide, tile, (tile.size, tile.size))


def _region(slide: OpenSlide, tile: Tile, size: tuple[int, int]) -> Pixels:
    region = slide.read_region((tile.x, tile.y), tile.level, size)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", size, "white"), region).convert("RGB"))
