"""Other people's ways to read a set of images, as their documentation shows them: what the streams are held against.

Each opens a set and returns epoch -> batches of uint8 [B, 3, size, size]: the whole image squashed, shuffled,
whole batches only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

Epochs = Callable[[int], Iterator[Tensor]]
Open = Callable[[Path, int, int, int, torch.device], Epochs]  # (set, size, batch, workers, device)
CHUNK_BYTES = "64MB"


def squashing(size: int) -> Any:
    """PIL image -> uint8 [3, size, size] on tensors: torchvision's faster way."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RGB(), v2.PILToTensor(), v2.Resize((size, size), antialias=True)])


def image_folder(path: Path, size: int, batch: int, workers: int, device: torch.device) -> Epochs:
    """torchvision's ImageFolder in a DataLoader, its transforms on PIL images."""
    from torchvision import transforms

    usual = transforms.Compose([transforms.Resize((size, size)), transforms.PILToTensor()])
    return _folder(path, usual, batch, workers, device)


def image_folder_v2(path: Path, size: int, batch: int, workers: int, device: torch.device) -> Epochs:
    """torchvision's ImageFolder in a DataLoader, its transforms on tensors."""
    return _folder(path, squashing(size), batch, workers, device)


def _folder(path: Path, transform: Any, batch: int, workers: int, device: torch.device) -> Epochs:
    from torchvision.datasets import ImageFolder

    loader: DataLoader[Any] = DataLoader(
        ImageFolder(str(path), transform),
        batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return lambda epoch: (images.to(device, non_blocking=True) for images, _ in loader)


def webdataset_library(path: Path, size: int, batch: int, workers: int, device: torch.device) -> Epochs:
    """The webdataset library's own pipeline over the same tars: in sequence, through a shuffle buffer."""
    import webdataset

    squash = squashing(size)
    tars = [str(tar) for tar in sorted(path.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), nodesplitter=None, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg;png;jpeg")
        .map_tuple(squash)
        .batched(batch, partial=False)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda epoch: (images.to(device) for (images,) in loader)


def ffcv_loader(path: Path, size: int, batch: int, workers: int, device: torch.device) -> Epochs:
    """FFCV's own Loader over the same beton; what it yields lies in memory that it will use again."""
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToDevice, ToTensor, ToTorchImage

    image = [SimpleRGBImageDecoder(), ToTensor()]
    image += [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    image += [ToTorchImage(channels_last=False)]
    loader = Loader(
        str(next(path.glob("*.beton"))),
        batch_size=batch,
        num_workers=max(1, workers),
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": image, "label": None},
    )
    return lambda epoch: (images for (images,) in loader)


def dali_reader(path: Path, size: int, batch: int, workers: int, device: torch.device) -> Epochs:
    """DALI's own file reader and decoder; what it yields lies in memory that it will use again."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    gpu = device.type == "cuda"

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch, num_threads=max(1, workers), device_id=(device.index or 0) if gpu else None
    )
    def pipeline() -> Any:
        files, _ = fn.readers.file(file_root=str(path), random_shuffle=True, name="reader")
        # With the chroma filter that every other side has; DALI's default is the cheaper one.
        images = fn.decoders.image(
            files, device="mixed" if gpu else "cpu", output_type=types.RGB, jpeg_fancy_upsampling=True
        )
        images = fn.resize(images, size=(size, size), interp_type=types.INTERP_TRIANGULAR)
        return fn.transpose(images, perm=[2, 0, 1])

    def epochs(epoch: int) -> Iterator[Tensor]:
        for (found,) in batches:
            yield found["images"]

    made = pipeline()
    made.build()
    batches = DALIGenericIterator(
        [made], ["images"], reader_name="reader", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
    )
    return epochs


def litdata_set(path: Path, out: Path) -> None:
    """Encoded images as litdata's chunks."""
    import litdata

    files = [str(file) for file in sorted(path.rglob("*")) if file.is_file()]
    litdata.optimize(
        _read, files, str(out), chunk_bytes=CHUNK_BYTES, num_workers=1, keep_data_ordered=True, verbose=False
    )


def _read(path: str) -> dict[str, bytes]:
    return {"image": Path(path).read_bytes()}


def litdata_stream(path: Path, size: int, batch: int, workers: int, device: torch.device) -> Epochs:
    """litdata's StreamingDataset over its own chunks."""
    import io

    import litdata
    from PIL import Image

    squash = squashing(size)

    class Images(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Tensor:
            squashed: Tensor = squash(Image.open(io.BytesIO(super().__getitem__(index)["image"])))
            return squashed

    loader = litdata.StreamingDataLoader(
        Images(str(path), shuffle=True, drop_last=True), batch_size=batch, num_workers=workers, drop_last=True
    )
    return lambda epoch: (images.to(device) for images in loader)
