"""One image file -> uint8 [H, W, 3]. Pillow first; tifffile and torchvision for what it cannot keep."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch.nn.functional import interpolate

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 2 * 89_478_485  # where Pillow itself refuses (a decompression bomb); about 13,400 x 13,400
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_EXIF = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # text in which Pillow looks for an orientation too
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # TIFF tags

# Between half of MAX_PIXELS and MAX_PIXELS Pillow only warns; our own limit decides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Pixels = NDArray[np.uint8]


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
    with _told(data):
        return _squash(_open(data, size), size)


def plain(data: bytes) -> bool:
    """Whether any decoder makes the same picture of these bytes, up to rounding; judged by headers, in microseconds.

    True for one upright image of 8 bits: a grey or YCbCr JPEG, or a grey or RGB PNG without transparency.
    """
    try:
        return _plain_png(data) if data.startswith(PNG_MAGIC) else _plain_jpeg(data)
    except Exception:  # decode says what is wrong with it
        return False


def _plain_jpeg(data: bytes) -> bool:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if not isinstance(image, JpegImageFile) or image.format != "JPEG" or image.width * image.height > MAX_PIXELS:
        return False  # MPO: several images
    # What three channels are is a guess from markers and ids, and decoders guess differently (libjpeg, jdapimin.c).
    channels = [component[0] for component in image.layer]
    ycbcr = channels == [1, 2, 3] and image.info.get("adobe_transform", 1) == 1
    return (ycbcr or image.mode == "L") and image.getexif().get(ORIENTATION, 1) == 1


def _plain_png(data: bytes) -> bool:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    odd = (b"tRNS", b"acTL", b"eXIf")
    at = len(PNG_MAGIC)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in odd or data.startswith(PNG_EXIF, at + 8):
            return False
        at += 12 + length
    return depth == 8 and colour in (0, 2) and width * height <= MAX_PIXELS


def load(data: bytes, size: int | None) -> Image.Image:
    """RGB, upright, not squashed: a JPEG at least twice as large as `size` comes smaller. Raises BadImage."""
    with _told(data):
        return _open(data, size)


@contextlib.contextmanager
def _told(data: bytes) -> Iterator[None]:
    """Whatever decoding raises becomes a BadImage that says why."""
    if not data:
        raise BadImage("zero bytes long")
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"over {MAX_PIXELS} pixels, refused before decoding") from error
    except MemoryError as error:
        raise BadImage("does not fit into memory") from error
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


def _open(data: bytes, size: int | None) -> Image.Image:
    """The RGB image of one file, upright."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data[:4] in TIFF_MAGIC:
            return _open_tiff(data)
        raise BadImage(f"not one of {', '.join(FORMATS)}") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width}x{image.height} is over {MAX_PIXELS} pixels, refused before decoding")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG with a preview behind it
        kind = "a multi-page TIFF" if image.format == "TIFF" else f"an animated {image.format}"
        raise BadImage(f"{kind} of {frames} images; save each as a file of its own")
    if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # IHDR: bit depth, colour type
        return _open_deep_png(data, image.getexif().get(ORIENTATION, 1))
    if isinstance(image, TiffImageFile) and max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8:
        return _open_deep_tiff(data, image)
    if size is not None and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (size, size))
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _window(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _window(values: NDArray[np.generic]) -> Image.Image:
    """[H, W] or [H, W, 3] of any type -> RGB by min..max of the finite values; a constant image is black."""
    x = values.astype(np.float64)
    finite = np.isfinite(x)
    low, high = (x[finite].min(), x[finite].max()) if finite.any() else (0.0, 0.0)
    scale = 255.0 / (high - low) if high > low else 0.0
    x = np.where(finite, (x - low) * scale, 0.0)
    return Image.fromarray(np.rint(x).astype(np.uint8)).convert("RGB")


def _open_deep_png(data: bytes, orientation: int) -> Image.Image:
    """16-bit grey + alpha, RGB or RGBA PNG, of which Pillow would keep only the high bytes."""
    from torchvision.io import ImageReadMode, decode_png

    raw = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    pixels = raw.permute(1, 2, 0).numpy().astype(np.float64)
    if pixels.shape[2] in (2, 4):
        pixels = pixels[..., :-1] * (pixels[..., -1:] / 65535.0)
    return _upright(_window(pixels[..., 0] if pixels.shape[2] == 1 else pixels), orientation)


def _open_deep_tiff(data: bytes, image: TiffImageFile) -> Image.Image:
    """More than 8 bits: Pillow keeps them for grey only, and does not invert "white is zero"."""
    if len(image.getbands()) > 1:
        return _open_tiff(data)
    inverted = image.tag_v2.get(PHOTOMETRIC) == 0
    values = np.asarray(ImageOps.exif_transpose(image))
    return _window(-values.astype(np.float64) if inverted else values)


def _open_tiff(data: bytes) -> Image.Image:
    """TIFF kinds that Pillow does not know: 16-bit colour, 16-bit floats."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        if len(tiff.pages) > 1:
            raise BadImage(f"a multi-page TIFF of {len(tiff.pages)} images; save each as a file of its own")
        page = tiff.pages.first
        width, height = page.imagewidth, page.imagelength
        if width * height > MAX_PIXELS:
            raise BadImage(f"{width}x{height} is over {MAX_PIXELS} pixels, refused before decoding")
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
    return _upright(_window(-pixels.astype(np.float64) if inverted else pixels), orientation)
