"""A picture of what the encoders see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """One row of the picture per tensor: float [N, 3, S, S] in [0, 1], the same N in all; smaller ones are framed."""
    side = max(row.shape[-1] for row in rows)
    framed = [F.pad(row.detach().float().cpu().clamp(0, 1), (0, side - row.shape[-1]) * 2, value=1.0) for row in rows]
    lines = [torch.cat(list(row), dim=2) for row in framed]
    pixels = (torch.cat(lines, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
