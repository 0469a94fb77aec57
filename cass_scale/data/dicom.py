"""One DICOM file -> its picture. Only tags that say how pixels are stored are read: a patient's never enter.

The display pipeline of PS3.3 C.7.6.3 and C.11: modality LUT or rescale, then the file's first VOI LUT or window, else
its own min..max; white is zero where it says so.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array

from cass_scale.data.decode import DEEPEST, BadImage, Opened, refuse_bomb, spread

NEEDED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PALETTE = [
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
]
TAGS: list[Any] = [
    *NEEDED, *PIXELS, *PALETTE, "PixelRepresentation", "PlanarConfiguration", "NumberOfFrames", "HighBit",
    "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "PresentationLUTShape", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip

warnings.filterwarnings("ignore", module="pydicom")  # its complaints may quote a file's values

Values = NDArray[Any]


def load(data: bytes, window: tuple[float, float] | None = None) -> Opened:
    """RGB, or uint16 [H, W] that fills 0..65535 by `window` in modality units (HU), else by the file's own.

    Raises BadImage; a decoder's own words are not repeated, since they may quote the file.
    """
    try:
        return _load(data, window)
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage(f"a DICOM file that is broken or cut off ({type(error).__name__})") from error


def patient(path: Path) -> str:
    """PatientID, or '' where there is none: to tell patients apart in memory, never to be written anywhere."""
    try:
        found = dcmread(path, force=True, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(found.get("PatientID") or "").strip()
    except Exception as error:
        raise BadImage(f"a DICOM file that is broken or cut off ({type(error).__name__})") from error


def _load(data: bytes, window: tuple[float, float] | None) -> Opened:
    if uid.DeflatedExplicitVRLittleEndian.encode() in data[:1024]:  # pydicom would inflate it without a limit
        raise BadImage("a deflated DICOM file; save it uncompressed (dcmtk: dcmconv +te)")
    ds = dcmread(BytesIO(data), force=True, specific_tags=TAGS)
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit = ds.original_encoding[0]
        ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    _check(ds)
    pixels, bits = pixel_array(ds), ds.BitsStored
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, ds)
        bits = ds.RedPaletteColorLookupTableDescriptor[2]
        pixels, bits = pixels >> bits - 8, 8  # an index has no more than 8 bits to tell colours by
    if pixels.ndim == 2:
        return _grey(ds, pixels, window)
    return _opened(spread(pixels, (0, 2**bits - 1), _top(bits)), _top(bits))


def _check(ds: Dataset) -> None:
    """Raise BadImage for what is not one whole image of a decent size, before anything is decoded."""
    kind = next((name for name in PIXELS if name in ds), None)
    if kind is None:
        raise BadImage("DICOM without pixel data: a report, a plan or a header")
    for name in NEEDED:
        if ds.get(name) in (None, ""):
            raise BadImage(f"DICOM without {name}")
    if (frames := int(ds.get("NumberOfFrames") or 1)) > 1:
        raise BadImage(f"DICOM of {frames} frames; save each frame as a file of its own, or the series as NIfTI")
    refuse_bomb(ds.Columns, ds.Rows)
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        try:
            known = get_decoder(syntax).is_available
        except NotImplementedError as error:
            raise BadImage(f"DICOM compressed as {syntax.name}; save it uncompressed (dcmtk: dcmdjpeg)") from error
        if not known:
            raise BadImage(f"DICOM compressed as {syntax.name}: `pip install 'cass-scale[medical]'`")
        return
    samples = 2 if ds.PhotometricInterpretation == "YBR_FULL_422" else ds.SamplesPerPixel
    need, there = ds.Rows * ds.Columns * samples * ds.BitsAllocated // 8, len(ds[kind].value)
    if there < need:
        raise BadImage(f"DICOM cut off: its pixels take {need} bytes, {there} are there")


def _grey(ds: Dataset, pixels: Values, window: tuple[float, float] | None) -> Opened:
    values = apply_modality_lut(pixels, ds)
    if window is None:
        values, window = _voi(ds, values)
    top, full = _top(ds.BitsStored), 2**ds.BitsStored - 1
    if window is None and top == 255 and values.min() >= 0 and values.max() <= full:
        window = 0, full  # 8 bit are what they are, as in any other file
    shown = spread(values, window, top)
    if ds.PhotometricInterpretation == "MONOCHROME1" or ds.get("PresentationLUTShape") == "INVERSE":
        shown = top - shown
    return _opened(shown, top)


def _top(bits: int) -> int:
    return DEEPEST if bits > 8 else 255


def _opened(shown: Values, top: int) -> Opened:
    return shown.astype(np.uint16) if top > 255 else Image.fromarray(shown.astype(np.uint8)).convert("RGB")


def _voi(ds: Dataset, values: Values) -> tuple[Values, tuple[float, float] | None]:
    """Values, and what of them becomes black and white by the first VOI LUT or window; None without a good one."""
    if ds.get("VOILUTSequence"):
        bits = ds.VOILUTSequence[0].LUTDescriptor[2]
        return apply_voi(values.round().astype(np.int64), ds), (0.0, 2.0**bits - 1)
    centre, width = (_first(ds.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = ds.get("VOILUTFunction") or "LINEAR"
    if centre is None or width is None or width <= (1 if function == "LINEAR" else 0):
        return values, None
    if function == "SIGMOID":
        return 1 / (1 + np.exp((-4 * (values - centre) / width).clip(-50, 50))), (0.0, 1.0)
    if function == "LINEAR":  # C.11.2.1.2.1: centre and width count whole numbers
        centre, width = centre - 0.5, width - 1
    return values, (centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    many = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
    return None if not many or many[0] in (None, "") else float(many[0])


# Compressions that pydicom itself reads only with packages under the GPL or with more of them: by imagecodecs.
CODECS = {
    **dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), "jpeg_decode"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "jpegls_decode"),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "htj2k_decode"),
}
DECODER_DEPENDENCIES = dict.fromkeys(CODECS, ("imagecodecs",))  # pydicom asks for this name, and for is_available


def is_available(syntax: str) -> bool:
    """Whether `decode_frame` can work here."""
    return find_spec("imagecodecs") is not None


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """A decoding plugin of pydicom, see its guide "Pixel data decoder plugins"."""
    import imagecodecs

    frame: Values = getattr(imagecodecs, CODECS[runner.transfer_syntax])(src)
    if frame.shape[:2] != (runner.rows, runner.columns):
        raise ValueError("the compressed image is of another size than the header says")
    runner.set_option("bits_allocated", 8 * frame.itemsize)
    runner.set_option("planar_configuration", 0)
    return frame.tobytes()


for _syntax in CODECS:
    get_decoder(_syntax).add_plugin("cass_scale", (__name__, decode_frame.__name__))
