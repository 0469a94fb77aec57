"""The noise control: other pixels, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cass_scale.data import sources
from cass_scale.data.folder import FolderStream
from cass_scale.data.noise import NoiseStream
from cass_scale.data.plan import Plan
from tests.data.images import fill


@pytest.fixture
def plain(tmp_path: Path) -> FolderStream:
    m = sources.folder(fill(tmp_path, *(f"{i}.png" for i in range(20)), side=32))
    return FolderStream(m, Plan(m.rows(), 4, seed=0), size=32, workers=0, device="cpu")


def test_ids_and_steps_stay_and_images_go(plain: FolderStream) -> None:
    stream = NoiseStream(plain, 0)
    assert (stream.steps_per_epoch, stream.batch_size, stream.provides) == (5, 4, plain.provides)
    for real, noisy in zip(plain.epoch(2, 1), stream.epoch(2, 1), strict=True):
        assert torch.equal(real.index, noisy.index)
        assert noisy.images.dtype == torch.uint8 and noisy.images.shape == real.images.shape
        assert (real.images == noisy.images).float().mean() < 0.05


def test_an_id_keeps_its_image_over_epochs_and_after_resume(plain: FolderStream) -> None:
    def by_id(stream: NoiseStream, epoch: int, start: int = 0) -> dict[int, torch.Tensor]:
        return {int(i): x for b in stream.epoch(epoch, start) for i, x in zip(b.index, b.images, strict=True)}

    first, later = by_id(NoiseStream(plain, 0), 0), by_id(NoiseStream(plain, 0), 3, 2)
    assert len(first) == 20 and len(later) == 12
    assert all(torch.equal(first[i], x) for i, x in later.items())
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(by_id(NoiseStream(plain, 1), 0)[0], first[0])


def test_statistics_that_are_given(plain: FolderStream) -> None:
    stream = NoiseStream(plain, 0, mean=(120.0, 60.0, 128.0), std=(10.0, 5.0, 20.0))
    x = torch.cat([b.images for b in stream.epoch(0)]).float()
    assert torch.allclose(x.mean((0, 2, 3)), torch.tensor([120.0, 60.0, 128.0]), atol=0.5)
    assert torch.allclose(x.std((0, 2, 3)), torch.tensor([10.0, 5.0, 20.0]), rtol=0.03)
    with pytest.raises(ValueError, match="together"):
        NoiseStream(plain, 0, mean=(1.0, 2.0, 3.0))


def test_statistics_that_are_estimated(shared: Path) -> None:
    m = sources.folder(shared / "data/skin_isic2017")
    plain = FolderStream(m, Plan(m.rows("val"), 128, seed=0), size=32, workers=0, device="cpu")
    real, noisy = next(plain.epoch(0)).images.float(), next(NoiseStream(plain, 0).epoch(0)).images.float()
    assert torch.allclose(real.mean((0, 2, 3)), noisy.mean((0, 2, 3)), atol=3)
    assert torch.allclose(real.std((0, 2, 3)), noisy.std((0, 2, 3)), rtol=0.1)
    assert noisy[:, 0].std((1, 2)).min() > 20  # each image is noise of its own, not a flat colour
