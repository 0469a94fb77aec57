"""The dali stream: every kind of image as our decoder makes it, whoever decodes it; errors that name the file."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cass_scale.data import sources
from cass_scale.data.dali import DaliStream
from cass_scale.data.decode import decode, unambiguous
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.errors import DataError, MissingExtra
from cass_scale.types import Batch
from tests.data.images import encode, noise, png16, tiff
from tests.data.tars import grouped, sharded

pytest.importorskip("nvidia.dali", reason="needs the extra `dali`")
SIDE = 32
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def text(key: str, value: str, *, international: bool = False) -> PngInfo:
    info = PngInfo()
    (info.add_itxt if international else info.add_text)(key, value)
    return info


def mpo(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "MPO", save_all=True, append_images=[image.rotate(180)])
    return out.getvalue()


def kinds() -> tuple[dict[str, bytes], dict[str, bytes], dict[str, bytes]]:
    """By file name, images that DALI decodes, that it must not see, and that it refuses though our decoder does not."""
    rgb = Image.fromarray(noise(6, 8, 3)).resize((40, 30), Image.Resampling.BICUBIC)
    grey, alpha = rgb.convert("L"), rgb.copy()
    alpha.putalpha(Image.fromarray(noise(30, 40, seed=1)))
    jpeg, png = encode(rgb, "JPEG"), encode(rgb, "PNG")
    for_dali = {
        "rgb.jpg": jpeg, "grey.jpg": encode(grey, "JPEG"), "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "upright.jpg": encode(rgb, "JPEG", exif=turned(1)), "full.jpg": encode(rgb, "JPEG", subsampling=0),
        "rgb.png": png, "grey.png": encode(grey, "PNG"), "text.png": encode(rgb, "PNG", pnginfo=text("Software", "x")),
    }  # fmt: skip
    raw = f"\nexif\n{len(turned(6).tobytes()):8d}\n{turned(6).tobytes().hex()}\n"
    for_us = {
        "turned.jpg": encode(rgb, "JPEG", exif=turned(6)), "xmp.jpg": encode(rgb, "JPEG", xmp=XMP.encode()),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"), "as_rgb.jpg": encode(rgb, "JPEG", keep_rgb=True),
        "mpo.jpg": mpo(rgb), "alpha.png": encode(alpha, "PNG"), "grey_alpha.png": encode(alpha.convert("LA"), "PNG"),
        "bits.png": encode(grey.convert("1"), "PNG"), "palette.png": encode(rgb.convert("P"), "PNG", transparency=3),
        "colour_key.png": encode(rgb, "PNG", transparency=rgb.getpixel((3, 3))),
        "grey_key.png": encode(grey, "PNG", transparency=100), "turned.png": encode(rgb, "PNG", exif=turned(6)),
        "raw.png": encode(rgb, "PNG", pnginfo=text("Raw profile type exif", raw)),
        "xmp.png": encode(rgb, "PNG", pnginfo=text("XML:com.adobe.xmp", XMP, international=True)),
        "deep.png": png16(noise(30, 40, 3).astype(np.uint16) * 200), "plain.webp": encode(rgb, "WEBP"),
        "deep_grey.png": encode(noise(30, 40).astype(np.uint16) * 200, "PNG"), "plain.bmp": encode(rgb, "BMP"),
        "plain.tif": tiff(noise(30, 40, 3)), "deep.tif": tiff(noise(30, 40).astype(np.uint16) * 200),
    }  # fmt: skip
    tables = jpeg.index(b"\xff\xdb")
    refused = {"junk.jpg": jpeg[:tables] + b"\0\7" + jpeg[tables:], "endless.png": png[: png.index(b"IEND") - 4]}
    return for_dali, for_us, refused


FOR_DALI, FOR_US, REFUSED = kinds()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("kinds")
    for name, data in (FOR_DALI | FOR_US | REFUSED).items():
        (root / name).write_bytes(data)
    return sources.folder(root)


def open_stream(manifest: Manifest, batch: int, workers: int = 2, **options: Any) -> DaliStream:
    plan = Plan(manifest.rows(), batch, seed=0, shuffle=False, tail="keep")
    return DaliStream(manifest, plan, **{"size": SIDE, "workers": workers, "device": "cpu", **options})


def by_name(manifest: Manifest, batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {manifest.keys[i]: image.cpu() for b in batches for i, image in zip(b.index.tolist(), b.images, strict=True)}


def check_kinds(found: dict[str, torch.Tensor], near: float = 0.5) -> None:
    for name, data in (FOR_US | REFUSED | FOR_DALI).items():
        want = torch.from_numpy(decode(data, SIDE)).permute(2, 0, 1)
        if name in FOR_DALI:  # the inverse cosine transform and the resampling round otherwise
            assert (found[name].float() - want.float()).abs().mean() < near, name
        else:
            assert torch.equal(found[name], want), name


@pytest.mark.parametrize("name", [*FOR_DALI, *FOR_US, *REFUSED])
def test_headers_tell_what_every_decoder_understands_alike(name: str) -> None:
    data = (FOR_DALI | FOR_US | REFUSED)[name]
    assert unambiguous(data) == (name not in FOR_US)


@pytest.mark.parametrize(
    "data", [b"", b"404 not found", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0", b"\x89PNG\r\n\x1a\n" * 9]
)
def test_broken_headers_are_left_to_our_decoder(data: bytes) -> None:
    assert not unambiguous(data)


@pytest.mark.parametrize("batch", [1, 4, 99])
def test_every_kind_is_the_picture_that_our_decoder_makes(batch: int, files: Manifest) -> None:
    """Alone, mixed in one batch, in batches of which DALI sees none, and beside images that it refuses."""
    stream = open_stream(files, batch)
    check_kinds(by_name(files, list(stream.epoch(0))))
    stream.close()


def test_pixels_do_not_depend_on_the_batch(files: Manifest) -> None:
    one, two = (by_name(files, list(open_stream(files, batch).epoch(0))) for batch in (1, 7))
    assert all(torch.equal(one[name], two[name]) for name in files.keys)


def test_files_and_tars_give_the_same_batches(tmp_path: Path) -> None:
    folder = grouped(tmp_path / "images", 20)
    made = sharded(folder, tmp_path / "shards")
    one, two = (list(open_stream(m, 8, with_labels=True).epoch(0)) for m in (folder, made))
    assert [len(b.index) for b in one] == [8, 8, 4]
    assert all(torch.equal(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("name", "size", "near"), [("skin_isic2017", 224, 0.3), ("blood_wbc_bccd", 224, 0.3), ("skin_isic2017", 64, 4.0)]
)
def test_real_images_are_near_pillows(name: str, size: int, near: float, shared: Path) -> None:
    """Far below half their size Pillow's JPEGs are of scaled decoding, which averages otherwise."""
    manifest = sources.folder(shared / "data" / name)
    plan = Plan(manifest.rows()[:40], 8, seed=0)
    for batch in DaliStream(manifest, plan, size=size, workers=1, device="cpu").epoch(0):
        files = [(manifest.root / manifest.keys[i]).read_bytes() for i in batch.index.tolist()]
        want = torch.stack([torch.from_numpy(decode(data, size)).permute(2, 0, 1) for data in files])
        assert (batch.images.float() - want.float()).abs().mean((1, 2, 3)).max() < near


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("left", "why"),
    [(b"", "zero bytes long"), (None, "cannot be read: No such file"), (FOR_DALI["rgb.jpg"][:-300], "truncated")],
)
def test_a_file_that_went_bad_is_named(left: bytes | None, why: str, workers: int, tmp_path: Path) -> None:
    manifest = grouped(tmp_path, 12, kind="jpg")
    (tmp_path / "07.jpg").unlink()
    if left is not None:
        (tmp_path / "07.jpg").write_bytes(left)
    stream, got = open_stream(manifest, 2, workers), []
    with pytest.raises(DataError, match=rf"07.jpg: .*{why}.*; it was good when it was scanned"):
        got += stream.epoch(0)
    assert [b.index.tolist() for b in got] == [[0, 1], [2, 3], [4, 5]], "what came before it was given"
    (tmp_path / "07.jpg").write_bytes(FOR_DALI["rgb.jpg"])  # another image, but one: as the folder stream has it
    assert len(list(stream.epoch(0))) == 6
    stream.close()


def test_damage_that_keeps_the_length_is_named(tmp_path: Path) -> None:
    manifest = grouped(tmp_path, 4, side=60)
    place = tmp_path / "02.png"
    data = place.read_bytes()
    place.write_bytes(data[:3000] + bytes(3000) + data[6000:])
    with pytest.raises(DataError, match=r"02.png: cannot be decoded"):
        list(open_stream(manifest, 4).epoch(0))


def test_a_shard_changed_under_a_running_job_is_named(tmp_path: Path) -> None:
    manifest = sharded(grouped(tmp_path / "images", 30), tmp_path / "shards", per_shard=10)
    batches = open_stream(manifest, 1, workers=1).epoch(0)
    next(batches)
    tar = tmp_path / "shards" / "shard-000002.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(DataError, match=r"shard-000002.tar: 20.png at byte \d+: .* the shard was changed"):
        list(batches)


def test_epochs_that_are_left_or_interleaved_do_not_meet(tmp_path: Path) -> None:
    manifest, before = grouped(tmp_path, 30), threading.active_count()
    plan = Plan(manifest.rows(), 4, seed=0)
    stream = DaliStream(manifest, plan, size=12, workers=2, device="cpu")
    want = [list(stream.epoch(e)) for e in range(2)]
    assert not torch.equal(want[0][0].index, want[1][0].index)
    next(stream.epoch(0))
    got = list(zip(stream.epoch(0), stream.epoch(1), strict=True))
    stream.close()
    got += [(a, b) for a, b in zip(stream.epoch(0, 3), stream.epoch(1, 3), strict=True)]  # closed streams open again
    for e in range(2):
        pairs = zip([pair[e] for pair in got], want[e] + want[e][3:], strict=True)
        assert all(torch.equal(a.images, b.images) and torch.equal(a.index, b.index) for a, b in pairs)
    assert threading.active_count() == before, "an epoch that ends leaves no thread"


def test_without_dali_the_extra_is_named(files: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingExtra, match=r"stream=dali needs .* `pip install 'cass-scale\[dali\]'`"):
        open_stream(files, 4)


def test_a_process_that_ends_in_the_middle_of_an_epoch_ends(files: Manifest, tmp_path: Path) -> None:
    files.write(tmp_path / "m.csv")
    code = f"""
import faulthandler; faulthandler.dump_traceback_later(50, exit=True)
from cass_scale.data.dali import DaliStream
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
m = Manifest.read({str(tmp_path / "m.csv")!r})
stream = DaliStream(m, Plan(m.rows(), 2, seed=0), size=12, workers=2, device="cpu")
batches = stream.epoch(0)
next(batches)
raise SystemExit(75)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60, capture_output=True)
    assert done.returncode == 75, done.stderr.decode()


@pytest.mark.gpu
def test_on_a_gpu(files: Manifest) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    runs = [list(open_stream(files, batch, device="cuda", with_labels=True).epoch(0)) for batch in (1, 5)]
    assert all(b.images.is_cuda and b.index.is_cuda and b.label is not None and b.label.is_cuda for b in runs[0])
    one, two = (by_name(files, batches) for batches in runs)
    check_kinds(one, near=2.0)
    assert all(torch.equal(one[name], two[name]) for name in files.keys), "pixels depend on the batch"
