"""A picture of what the encoders see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """One row of the picture per tensor: float [N, 3, S, S] in [0, 1], the same N and S in all."""
    lines = [torch.cat(list(row.detach().float().cpu().clamp(0, 1)), dim=2) for row in rows]
    pixels = (torch.cat(lines, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
