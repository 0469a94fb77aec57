"""One image file -> uint8 or uint16 [H, W, 3]. Pillow first; tifffile, torchvision, pydicom for what it cannot keep."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch.nn.functional import interpolate

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
DICOM_EXTENSIONS = (".dcm", ".dicom")
DICOM_MAGIC = b"DICM"  # at byte 128
PAGES = "a multi-page TIFF"
MAX_PIXELS = 2 * 89_478_485  # where Pillow itself refuses (a decompression bomb); about 13,400 x 13,400
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_EXIF = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # text in which Pillow looks for an orientation too
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # TIFF tags

# Between half of MAX_PIXELS and MAX_PIXELS Pillow only warns; our own limit decides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Pixels = NDArray[np.uint8]  # [H, W, 3]
Deep = NDArray[np.uint16]  # [H, W] or [H, W, 3]
Opened = Image.Image | Deep  # RGB, or what has more than 8 bits per channel
DEEPEST = 65535


class BadImage(Exception):
    """The file cannot be used as one image; the text says why."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A whole file. Raises BadImage when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error


def read_image(path: str | os.PathLike[str], size: int | None) -> Pixels:
    """`decode` of a file's bytes: uint8 [H, W, 3]. Raises BadImage, also when the file cannot be read."""
    return decode(read_file(path), size)


def decode(data: bytes, size: int | None) -> Pixels:
    """uint8 [H, W, 3], or squashed to [size, size, 3]: antialiased bilinear like torchvision's Resize.

    Grey becomes three equal channels, palettes and CMYK become RGB, alpha is composited over black, EXIF
    orientation is applied. More than 8 bits per channel are windowed linearly from the image's own min..max
    to 0..255, all channels by the same window. A JPEG at least twice as large as `size` is decoded at 1/2,
    1/4 or 1/8. Raises BadImage.
    """
    with told():
        return shallow(_open(data, size), size)


def unambiguous(data: bytes) -> bool:
    """Whether any decoder makes the same picture of these bytes, up to rounding; judged by headers, in microseconds.

    True for one upright image of 8 bits: a grey or YCbCr JPEG, or a grey or RGB PNG without transparency.
    """
    try:
        return _unambiguous_png(data) if data.startswith(PNG_MAGIC) else _unambiguous_jpeg(data)
    except Exception:  # decode says what is wrong with it
        return False


def _unambiguous_jpeg(data: bytes) -> bool:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if not isinstance(image, JpegImageFile) or image.format != "JPEG" or image.width * image.height > MAX_PIXELS:
        return False  # MPO: several images
    # What three channels are is a guess from markers and ids, and decoders guess differently (libjpeg, jdapimin.c).
    channels = [component[0] for component in image.layer]
    ycbcr = channels == [1, 2, 3] and image.info.get("adobe_transform", 1) == 1
    return (ycbcr or image.mode == "L") and image.getexif().get(ORIENTATION, 1) == 1


def _unambiguous_png(data: bytes) -> bool:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    odd = (b"tRNS", b"acTL", b"eXIf")
    at = len(PNG_MAGIC)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in odd or data.startswith(PNG_EXIF, at + 8):
            return False
        at += 12 + length
    return depth == 8 and colour in (0, 2) and width * height <= MAX_PIXELS


def decode_deep(data: bytes, size: int | None) -> Deep:
    """`decode`, with 16 bits kept and not windowed: uint16 [H, W, 3]. Raises BadImage.

    Signed 16 bit is shifted by 32768; floats and 32 bit fill 0..65535 from the image's own min..max.
    """
    with told():
        opened = _open(data, size)
        if isinstance(opened, Image.Image):
            return _squash(opened, size) * np.uint16(257)
        deep = opened if size is None else resize_deep(opened, (size, size))
        return np.stack([deep] * 3, -1) if deep.ndim == 2 else np.ascontiguousarray(deep)


def load(data: bytes, size: int | None) -> Opened:
    """Upright, not squashed: a JPEG at least twice as large as `size` comes smaller. Raises BadImage."""
    with told():
        return _open(data, size)


def shallow(opened: Opened, size: int | None) -> Pixels:
    """What `load` gave as uint8 [H, W, 3], or squashed to [size, size, 3]."""
    return _squash(opened if isinstance(opened, Image.Image) else _window(opened), size)


def resize_deep(pixels: Deep, size: tuple[int, int]) -> Deep:
    """To (width, height), by the filter that 8 bit gets."""
    if size == pixels.shape[1::-1]:
        return pixels
    if pixels.ndim == 3:
        return np.stack([resize_deep(pixels[..., i], size) for i in range(pixels.shape[2])], -1)
    plane = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(plane).round().astype(np.uint16)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Whatever decoding raises becomes a BadImage that says why."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"over {MAX_PIXELS} pixels, refused before decoding") from error
    except MemoryError as error:
        raise BadImage("does not fit into memory") from error
    except ImportError as error:
        extra = "wsi" if "openslide" in str(error).lower() else "medical"
        raise BadImage(f"{error}: `pip install 'cass-scale[{extra}]'`") from error
    except Exception as error:  # decoders raise whatever they like on broken bytes
        raise BadImage(f"cannot be decoded: {error}") from error


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """[H, W, 3] -> [height, width, 3], antialiased bilinear: a view of three planes, as batches want them."""
    # torch's filter is Pillow's within one level, in less than half its time.
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    scaled: Pixels = interpolate(planes, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    return scaled


def _squash(image: Image.Image, size: int | None) -> Pixels:
    pixels: Pixels = np.array(image, dtype=np.uint8)
    return pixels if size is None or image.size == (size, size) else resize(pixels, size, size)


def is_dicom(data: bytes) -> bool:
    """By the magic behind the preamble, or by the first group where an old writer left both out."""
    return data[128:132] == DICOM_MAGIC or data[:2] in (b"\2\0", b"\x08\0")


def _open(data: bytes, size: int | None) -> Opened:
    """The image of one file, upright."""
    if not data:
        raise BadImage("zero bytes long")
    if is_dicom(data):
        from cass_scale.data import dicom

        return dicom.load(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data[:4] in TIFF_MAGIC:
            return _open_tiff(data)
        raise BadImage(f"not one of {', '.join(FORMATS)}, DICOM") from error
    refuse_bomb(image.width, image.height)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG with a preview behind it
        raise BadImage(_many(f"an animated {image.format}" if image.format != "TIFF" else PAGES, frames))
    if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # IHDR: bit depth, colour type
        return _open_deep_png(data, image.getexif().get(ORIENTATION, 1))
    if isinstance(image, TiffImageFile) and max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8:
        return _open_deep_tiff(data, image)
    if size is not None and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (size, size))
    return _to_rgb(ImageOps.exif_transpose(image))


def _many(kind: str, number: int) -> str:
    slide = "; a whole slide: data.tiles.tiff=true" if kind == PAGES else ""
    return f"{kind} of {number} images; save each as a file of its own{slide}"


def refuse_bomb(width: int, height: int) -> None:
    """Raise BadImage for a size that nobody means."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} is over {MAX_PIXELS} pixels, refused before decoding")


def _to_rgb(image: Image.Image) -> Opened:
    if image.mode == "F" or image.mode.startswith("I"):
        return to_deep(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def to_deep(values: NDArray[Any]) -> Deep:
    """16 bit as it is, signed shifted by 32768; anything else from the min..max of its finite values to 0..65535."""
    if values.dtype == np.uint16:
        return values.astype(np.uint16)
    if values.dtype == np.int16:
        return (values.astype(np.int32) + 32768).astype(np.uint16)
    return spread(values, None, DEEPEST).astype(np.uint16)


def spread(values: NDArray[Any], window: tuple[float, float] | None, top: int) -> NDArray[np.float64]:
    """Whole numbers 0..top over `window`, else over the finite values; black where they do not differ."""
    x = values.astype(np.float64)
    finite = np.isfinite(x)
    own = (x[finite].min(), x[finite].max()) if window is None and finite.any() else (0.0, 0.0)
    low, high = window or own
    scale = top / (high - low) if high > low else 0.0
    return np.where(finite, (x - low) * scale, 0.0).round().clip(0, top)


def _window(pixels: Deep) -> Image.Image:
    return Image.fromarray(spread(pixels, None, 255).astype(np.uint8)).convert("RGB")


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """By the numbers 1..8 of EXIF and TIFF: a transposition from 5 on, then mirrored axes."""
    axes = ((), (1,), (0, 1), (0,))[(orientation - 1) % 4]
    return np.flip(pixels.swapaxes(0, 1) if 5 <= orientation <= 8 else pixels, axes)


def _open_deep_png(data: bytes, orientation: int) -> Deep:
    """16-bit grey + alpha, RGB or RGBA PNG, of which Pillow would keep only the high bytes."""
    from torchvision.io import ImageReadMode, decode_png

    raw = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    pixels: Deep = raw.permute(1, 2, 0).numpy()
    if pixels.shape[2] in (2, 4):
        pixels = np.rint(pixels[..., :-1] * (pixels[..., -1:] / DEEPEST)).astype(np.uint16)
    return _upright(pixels[..., 0] if pixels.shape[2] == 1 else pixels, orientation)


def _open_deep_tiff(data: bytes, image: TiffImageFile) -> Opened:
    """More than 8 bits: Pillow keeps them for grey only, and does not invert "white is zero"."""
    if len(image.getbands()) > 1:
        return _open_tiff(data)
    inverted = image.tag_v2.get(PHOTOMETRIC) == 0
    values = np.asarray(ImageOps.exif_transpose(image))
    if values.dtype == np.int32 and max(image.tag_v2[BITS_PER_SAMPLE]) <= 16:  # Pillow widens signed ones
        values = values.astype(np.int16)
    return ~to_deep(values) if inverted else to_deep(values)


def _open_tiff(data: bytes) -> Opened:
    """TIFF kinds that Pillow does not know: 16-bit colour, 16-bit floats."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        if len(tiff.pages) > 1:
            raise BadImage(_many(PAGES, len(tiff.pages)))
        page = tiff.pages.first
        refuse_bomb(page.imagewidth, page.imagelength)
        try:
            pixels = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            packing = tifffile.COMPRESSION(page.compression).name
            kind = f"{page.bitspersample}-bit TIFF with {packing} compression"
            raise BadImage(f"{kind}: `pip install 'cass-scale[medical]'`, or save it uncompressed") from error
        axes, inverted = page.axes, page.photometric == 0
        orientation = int(page.tags.valueof(ORIENTATION, 1))
    if axes == "SYX":
        pixels, axes = np.moveaxis(pixels, 0, -1), "YXS"
    if axes not in ("YX", "YXS"):
        raise BadImage(f"a TIFF with the axes {axes}; one plane of grey or RGB is expected")
    if axes == "YXS":  # further samples are alpha or unnamed channels
        pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    if pixels.dtype == np.uint8:
        return Image.fromarray(_upright(~pixels if inverted else pixels, orientation)).convert("RGB")
    return _upright(~to_deep(pixels) if inverted else to_deep(pixels), orientation)
