"""DICOM: the picture that a viewer shows, 16 bits of it, and nothing about whom it shows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from cass_scale import evaluate, pretrain, shard, split, verify
from cass_scale.data import sources
from cass_scale.data.decode import BadImage, decode, decode_deep
from cass_scale.data.shards import shards
from cass_scale.errors import ConfigError, DataError
from tests.data.images import encode, fill, labels_csv, noise
from tests.data.medical import ct, dicom, fill_ct
from tests.data.tars import sharded, write_tar
from tests.short_runs import TWO_STEPS

pydicom = pytest.importorskip("pydicom", reason="needs the extra `medical`")
imagecodecs = pytest.importorskip("imagecodecs", reason="needs the extra `medical`")
from pydicom import Dataset, Sequence, uid  # noqa: E402
from pydicom.datadict import DicomDictionary  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_cache")
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
TOP = 65535
NAME, UID = "SECRET^JANE", "1.2.3.987654321.123456789"


def grey(data: bytes) -> NDArray[np.int64]:
    """The one channel of a deep image."""
    deep = decode_deep(data, None)
    assert (deep == deep[..., :1]).all()
    return deep[..., 0].astype(np.int64)


def by(values: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * TOP).astype(np.int64)


def windowed(**tags: Any) -> bytes:
    return dicom(ct(), BitsStored=12, HighBit=11, **(HU | {"WindowCenter": 40, "WindowWidth": 400} | tags))


def test_rescale_and_window_as_the_standard_has_them() -> None:
    units = ct().astype(float) - 1024
    linear = np.clip((units - 39.5) / 399 + 0.5, 0, 1) * TOP  # PS3.3 C.11.2.1.2.1, equation for the middle
    assert np.abs(grey(windowed()) - linear).max() <= 0.5 + 1e-6
    assert np.abs(grey(windowed(VOILUTFunction="LINEAR_EXACT")) - by(units, -160, 240)).max() <= 1
    sigmoid = TOP / (1 + np.exp(-4 * (units - 40) / 400))
    assert np.abs(grey(windowed(VOILUTFunction="SIGMOID")) - sigmoid).max() <= 1
    two = grey(windowed(WindowCenter=[40, -600], WindowWidth=[400, 1500]))
    assert np.array_equal(two, grey(windowed())), "the first of several"


@pytest.mark.parametrize("lacking", [{"WindowWidth": None}, {"WindowWidth": 0}, {"WindowCenter": ""}])
def test_without_a_good_window_its_own_range(lacking: dict[str, Any]) -> None:
    values = ct().astype(float)
    assert np.array_equal(grey(windowed(**lacking)), by(values, values.min(), values.max()))


def test_white_is_zero_where_it_says_so() -> None:
    assert np.array_equal(grey(windowed(PhotometricInterpretation="MONOCHROME1")), TOP - grey(windowed()))
    both = windowed(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    assert np.array_equal(grey(both), TOP - grey(windowed())), "MONOCHROME1 always comes with INVERSE"
    assert np.array_equal(grey(windowed(PresentationLUTShape="INVERSE")), TOP - grey(windowed()))


def lut(first: int, entries: NDArray[np.uint16], bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries.tolist())
    return Sequence([item])


def test_lookup_tables() -> None:
    steps = (np.arange(4096) // 64 * 1000).astype(np.uint16)
    plain = dicom(ct().astype(np.uint16), BitsStored=12, VOILUTSequence=lut(0, steps, 16))
    assert np.array_equal(grey(plain), steps[ct()])
    twice = (np.arange(4096) * 2).astype(np.uint16)
    tags: dict[str, Any] = {"ModalityLUTSequence": lut(0, twice, 16), "WindowCenter": 2000.5, "WindowWidth": 1001}
    assert np.abs(grey(dicom(ct().astype(np.uint16), BitsStored=12, **tags)) - by(2.0 * ct(), 1500, 2500)).max() <= 1


def test_eight_bits_are_kept_exactly() -> None:
    pixels = noise(20, 30, high=200)
    assert np.array_equal(decode(dicom(pixels), None), np.stack([pixels] * 3, -1))
    colour = noise(20, 30, 3)
    assert np.array_equal(decode(dicom(colour), None), colour)
    planes = dicom(colour, PlanarConfiguration=1, PixelData=np.moveaxis(colour, -1, 0).tobytes())
    assert np.array_equal(decode(planes, None), colour)
    indexed = {
        f"{c}PaletteColorLookupTableData": (np.arange(256) * 257).astype("<u2").tobytes() for c in ("Red", "Green")
    }
    indexed["BluePaletteColorLookupTableData"] = bytes(512)
    descriptors = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    got = decode(dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **indexed, **descriptors), None)
    assert np.array_equal(got, np.stack([pixels, pixels, 0 * pixels], -1))


def test_ybr_becomes_rgb() -> None:
    flat = np.broadcast_to(np.array([76, 85, 255], np.uint8), (8, 8, 3))  # red, by BT.601
    got = decode(dicom(np.ascontiguousarray(flat), PhotometricInterpretation="YBR_FULL"), None)
    assert np.abs(got[0, 0].astype(int) - (254, 0, 0)).max() <= 2


def test_sixteen_bits_of_colour_fill_the_range() -> None:
    deep = decode_deep(dicom(noise(8, 8, 3).astype(np.uint16) * 16, BitsStored=12, HighBit=11), None)
    assert np.abs(deep.astype(int) - np.rint(noise(8, 8, 3) * 16.0 * TOP / 4095)).max() <= 1


DEEP = ct().astype(np.uint16)
RGB = noise(32, 32, 3)
CODED = {
    "RLE": (uid.RLELossless, DEEP, None),
    "JPEG lossless": (uid.JPEGLosslessSV1, DEEP, lambda x: imagecodecs.jpeg_encode(x, lossless=True, bitspersample=16)),
    "JPEG lossless 14": (uid.JPEGLossless, DEEP, lambda x: imagecodecs.ljpeg_encode(x, bitspersample=16)),
    "JPEG extended": (uid.JPEGExtended12Bit, DEEP, lambda x: imagecodecs.jpeg_encode(x, level=100, bitspersample=12)),
    "JPEG-LS": (uid.JPEGLSLossless, DEEP, imagecodecs.jpegls_encode),
    "JPEG-LS, colour": (uid.JPEGLSLossless, RGB, imagecodecs.jpegls_encode),
    "JPEG 2000": (
        uid.JPEG2000Lossless,
        DEEP,
        lambda x: imagecodecs.jpeg2k_encode(x, codecformat="j2k", reversible=True),
    ),
    "HTJ2K": (uid.HTJ2KLossless, DEEP, imagecodecs.htj2k_encode),
}


@pytest.mark.parametrize("name", CODED)
def test_compressed_files(name: str) -> None:
    syntax, pixels, pack = CODED[name]
    tags: dict[str, Any] = {"BitsStored": 12, "HighBit": 11} if pixels is DEEP else {}
    plain = dicom(pixels, **tags)
    if pack is None:
        ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(plain))
        ds.compress(syntax)
        out = pydicom.filebase.DicomBytesIO()
        ds.save_as(out)
        data = out.getvalue()
    else:
        data = dicom(pixels, syntax=syntax, encoded=pack(pixels), **tags)
    off = decode_deep(data, None).astype(int) - decode_deep(plain, None)
    assert np.abs(off).max() <= (4 * TOP / 1200 if syntax == uid.JPEGExtended12Bit else 0)  # it loses some levels


def test_baseline_jpeg() -> None:
    soft = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    packed = encode(soft, "JPEG", quality=95)
    data = dicom(soft, syntax=uid.JPEGBaseline8Bit, encoded=packed, PhotometricInterpretation="YBR_FULL_422")
    assert np.abs(decode(data, None).astype(int) - soft).max() < 4


def test_a_file_from_before_the_preamble() -> None:
    whole = pydicom.dcmread(pydicom.filebase.DicomBytesIO(windowed()))
    out = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(out, Dataset(whole), implicit_vr=True, little_endian=True)
    assert out.getvalue()[:2] == b"\x08\0"
    assert np.array_equal(grey(out.getvalue()), grey(windowed()))


BAD = {
    "frames": (windowed(NumberOfFrames=12), r"DICOM of 12 frames; save each frame as a file of its own, or the series"),
    "report": (windowed(PixelData=None), "DICOM without pixel data: a report, a plan or a header"),
    "no rows": (windowed(Rows=None), "DICOM without Rows"),
    "bomb": (windowed(Rows=60_000, Columns=60_000), "60000x60000 is over .* pixels, refused before decoding"),
    "cut": (windowed()[:-100], "DICOM cut off: its pixels take 2048 bytes, 1948 are there"),
    "cut in the header": (windowed()[:300], "DICOM without|broken or cut off"),
    "a lie": (windowed(Rows=64), "DICOM cut off: its pixels take 4096 bytes, 2048 are there"),
    "video": (
        dicom(RGB, syntax=uid.MPEG2MPML, encoded=b"\0" * 64),
        "DICOM compressed as MPEG2.*; save it uncompressed",
    ),
    "deflated": (dicom(ct(), syntax=uid.DeflatedExplicitVRLittleEndian), "a deflated DICOM file; save it uncompressed"),
    "another size inside": (
        dicom(DEEP, syntax=uid.JPEGLSLossless, encoded=imagecodecs.jpegls_encode(DEEP[:16])),
        "broken or cut off",
    ),
    "cut inside": (
        dicom(DEEP, syntax=uid.JPEGLSLossless, encoded=imagecodecs.jpegls_encode(DEEP)[:200]),
        "broken or cut off",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_why(name: str) -> None:
    data, why = BAD[name]
    with pytest.raises(BadImage, match=why):
        decode(data, None)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, plain = dicom(DEEP, syntax=uid.JPEGLSLossless, encoded=imagecodecs.jpegls_encode(DEEP)), windowed()
    from cass_scale.data import dicom as module

    monkeypatch.setattr(module.get_decoder(uid.JPEGLSLossless), "_available", {})  # as without imagecodecs
    with pytest.raises(BadImage, match=r"compressed as JPEG-LS .*: `pip install 'cass-scale\[medical\]'`"):
        decode(packed, None)
    monkeypatch.delattr(sys.modules["cass_scale.data"], "dicom")
    monkeypatch.delitem(sys.modules, "cass_scale.data.dicom")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(BadImage, match=r"pydicom.*`pip install 'cass-scale\[medical\]'`"):
        decode(plain, None)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_hundred_flipped_bytes_end_in_a_message() -> None:
    numbers = np.random.default_rng(0)
    for data in (windowed(), dicom(DEEP, syntax=uid.JPEGLSLossless, encoded=imagecodecs.jpegls_encode(DEEP))):
        for _ in range(100):
            broken = bytearray(data)
            at = int(numbers.integers(0, len(data) if numbers.random() < 0.3 else 1200))
            broken[at] ^= int(numbers.integers(1, 256))
            try:
                assert decode(bytes(broken), 16).shape == (16, 16, 3)
            except BadImage as error:
                assert str(error)


def test_dicom_is_found_by_name_and_by_magic(home: Path) -> None:
    fill_ct(home / "series", 3)
    for old, new in (("00.dcm", "IM000001"), ("01.dcm", "1.2.840.113619.2.55.3"), ("02.dcm", "C.DICOM")):
        (home / "series" / old).rename(home / "series" / new)
    shutil.copy(home / "series/IM000001", home / "DICOMDIR")
    (home / "README").write_text("no image")
    (home / "table.2024").write_bytes(b"\0" * 200)
    m = sources.folder(home)
    assert m.keys == ("series/1.2.840.113619.2.55.3", "series/C.DICOM", "series/IM000001") and not m.bad
    assert m.depth == 16 and "3 images of 16 bit" in m.notes


def test_a_window_in_units_for_all(home: Path, tmp_path: Path) -> None:
    fill_ct(home, 4)
    m = sources.folder(home, window=[-160, 240.5])
    assert m.keys[0] == "00.dcm#window=-160:240.5" and m.window == (-160, 240.5, False)
    made = sharded(m, tmp_path / "shards")
    for found in (m, made, shards(tmp_path / "shards"), shards(tmp_path / "shards", window=[-160, 240.5])):
        assert found.window == m.window
    with pytest.raises(ConfigError, match=r"data.window=\[0.0, 80.0\]: 00.dcm#.* was brought to a scale of its own"):
        shards(tmp_path / "shards", window=[0, 80])
    from cass_scale.data.folder import Files

    got = decode_deep(Files(m).read(1), None)[..., 0].astype(int)
    assert np.abs(got - by(ct(32, 1) - 1024.0, -160, 240.5)).max() <= 1


def test_foreign_tars_may_hold_dicom(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars/a.tar", *((f"{i}.dcm", windowed(InstanceNumber=i)) for i in range(3)))
    m = shards(tmp_path / "tars")
    assert len(m) == 3 and m.depth == 16


def test_groups_by_patient_tell_nothing_of_him(home: Path) -> None:
    fill_ct(home / "a", 4)
    fill_ct(home / "b", 2)  # the first patient of a, again
    fill(home / "b", "photo.png")
    m = sources.folder(home, groups="dicom")
    one, two = "dicom-patient-1", "dicom-patient-2"
    assert m.groups == (one, one, two, two, one, one, "")
    assert "groups from the PatientID of DICOM: 2 patients, numbered" in m.notes
    assert set(sources.folder(home).groups) == {""}
    assert len({m.splits[i] for i in (0, 1, 4, 5)}) == 1
    labels_csv(home, "path,group_id", ("a/00.dcm", "mine"), ("a/01.dcm", ""), ("a/02.dcm", ""))
    assert sources.folder(home, groups="dicom").groups == ("mine", one, two)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A name in every text tag there is and a mark in every UID; what all verbs write of it."""
    marks = {"PN": NAME, "LO": NAME, "SH": NAME, "LT": NAME, "ST": NAME, "UT": NAME, "UC": NAME, "UI": UID}
    tags = {
        keyword: marks[vr]
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items()
        if vr in marks and keyword and not retired and tag >> 16 > 2
    }
    out = tmp_path_factory.mktemp("written")
    home = fill_ct(tmp_path_factory.mktemp("secret") / "scans", 10, **tags)
    (home / "broken.dcm").write_bytes(windowed(**tags)[:-5])
    rows = [(f"{i:02d}.dcm", "ab"[i % 2], "train" if i < 8 else "test") for i in range(10)]
    labels_csv(home, "path,label,split", *rows, ("broken.dcm", "a", "train"))
    assert NAME.encode() in (home / "00.dcm").read_bytes() and UID.encode() in (home / "00.dcm").read_bytes()
    data = (f"data.path={home}", "data.max_bad=0.2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASS_SCALE_CACHE", str(out / "cache"))
        pretrain(*TWO_STEPS, *data, "data.groups=dicom", f"run.dir={out / 'from_files'}", quiet=True)
        shard(*data, "data.groups=dicom", "size=null", "samples_per_shard=4", f"out={out / 'shards'}", quiet=True)
        pretrain(*TWO_STEPS, f"data.path={out / 'shards'}", f"run.dir={out / 'from_shards'}", quiet=True)
        evaluate(f"run.dir={out / 'from_files'}", "protocol=knn", "protocol.k=1", "device=cpu", quiet=True)
        verify(*data, f"out={out / 'verify'}", quiet=True)
        split(*data, f"out={out / 'clean.csv'}", quiet=True)
    return out


def test_no_patient_tag_gets_into_anything_that_is_written(written: Path) -> None:
    files = [p for p in written.rglob("*") if p.is_file()]
    names = {p.name for p in files}
    assert {"run.json", "manifest.csv", "shard-000000.tar", "knn-run.json", "verify.json", "clean.csv"} <= names
    assert [p for p in files if NAME.encode() in p.read_bytes() or UID.encode() in p.read_bytes()] == []


def test_from_files_and_from_shards_the_same_weights(written: Path) -> None:
    runs = [written / name / "export" for name in ("from_files", "from_shards")]
    for arm in ("cnn", "vit"):
        one, two = (load_file(run / f"{arm}.safetensors") for run in runs)
        assert all(torch.equal(one[key], two[key]) for key in one)
    made = shards(written / "shards")
    assert made.depth == 16 and made.keys[0] == "00.dcm" and made.groups[0] == "dicom-patient-1"


def test_nothing_but_reports_is_refused_with_the_reason(home: Path) -> None:
    home.mkdir()
    (home / "report.dcm").write_bytes(windowed(PixelData=None))
    with pytest.raises(DataError, match=r"no good image is left:\n  report.dcm: DICOM without pixel data"):
        sources.folder(home)
