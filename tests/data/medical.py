"""Medical files for tests: DICOM, NIfTI and whole slides, made by the libraries that hospitals' tools are made with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

CT = "1.2.840.10008.5.1.4.1.1.2"


def ct(side: int = 32, seed: int = 0) -> NDArray[np.int16]:
    """A disc of soft tissue in air with some noise, in Hounsfield units + 1024."""
    y, x = np.mgrid[:side, :side] - side / 2
    numbers = np.random.default_rng(seed)
    body = np.where(np.hypot(x, y) < side / (2.2 + 0.02 * seed), 1064.0, 24.0)
    return np.clip(body + numbers.normal(0, 40, (side, side)), 0, 4095).astype(np.int16)


def dicom(pixels: NDArray[Any], *, syntax: str = "", encoded: bytes = b"", **tags: Any) -> bytes:
    """A DICOM file of these pixels; `encoded` are they compressed as `syntax` says. A tag of None is left out."""
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax or uid.ExplicitVRLittleEndian)
    ds.SOPClassUID, ds.SOPInstanceUID = uid.UID(CT), uid.generate_uid(entropy_srcs=["a test"])
    bits = 8 * pixels.itemsize
    values: dict[str, Any] = {
        "Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2", "BitsAllocated": bits,
        "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PlanarConfiguration": 0 if pixels.ndim == 3 else None,
        "PixelData": encapsulate([encoded]) if encoded else pixels.tobytes(),
    }  # fmt: skip
    for name, value in (values | tags).items():
        if value is not None:
            setattr(ds, name, value)
    if "PixelData" in ds:
        ds["PixelData"].VR = "OB" if encoded or bits == 8 else "OW"
        ds["PixelData"].is_undefined_length = bool(encoded)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def fill_ct(folder: Path, number: int, side: int = 32, **tags: Any) -> Path:
    """`number` CT slices in Hounsfield units under the window of soft tissue, two of each patient."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        own = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400, "BitsStored": 12}
        who = {"HighBit": 11, "PatientID": f"HOSPITAL-{i // 2}", "PatientName": f"Doe^Jane{i // 2}"}
        (folder / f"{i:02d}.dcm").write_bytes(dicom(ct(side, i), **(own | who | tags)))
    return folder


def volume(shape: tuple[int, ...] = (20, 24, 10), seed: int = 0) -> NDArray[np.int16]:
    """A head: brighter towards the right, the front and the crown, nothing around it, its first slices empty."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:3]), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    values = 300 + 100 * axes[0] + 60 * axes[1] + 30 * axes[2] + np.random.default_rng(seed).normal(0, 5, shape[:3])
    return np.where(inside, values, 0).astype(np.int16)


def save_nifti(path: Path, voxels: NDArray[Any], axes: str = "RAS", **header: Any) -> Path:
    """`voxels` [X, Y, Z] in RAS, stored along other axes."""
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    stored = nib.orientations.apply_orientation(voxels, turn)
    image = nib.Nifti1Image(stored, np.eye(4) @ inv_ornt_aff(turn, voxels.shape[:3]))
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def slide(path: Path, width: int = 640, height: int = 512, *, levels: int = 3, **options: Any) -> NDArray[np.uint8]:
    """A tiled pyramid in TIFF: white glass, with purple tissue in its left half. Returns level 0."""
    numbers = np.random.default_rng(3)
    pixels = np.full((height, width, 3), 245, np.uint8)
    tissue = numbers.integers(90, 180, (height, width // 2, 3), dtype=np.uint8)
    pixels[:, : width // 2] = tissue // np.array([1, 2, 1], np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            kind = {"photometric": "rgb", "tile": (64, 64), "subfiletype": 1 if level else 0, "metadata": None}
            tiff.write(pixels[:: 2**level, :: 2**level], **(kind | options))
    return pixels
