"""format=ffcv and stream=ffcv as a person meets them: a kill, a training run, scores, refusals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cass_scale import evaluate, pretrain, records, shard, verify
from cass_scale.cli import compose_config, main
from cass_scale.data import beton
from cass_scale.data.shards import shards
from cass_scale.errors import ConfigError, DataError
from cass_scale.verbs import shard as verb
from tests.data.images import fill, two_classes

pytest.importorskip("ffcv", reason="needs the extra `ffcv`")

ROOT = Path(__file__).parents[1]
RUN = (
    "method=cass_contrast", "arms.image_size=32", "train.batch_size=4", "train.max_steps=3", "monitor.images=8",
    "train.device=cpu", "train.precision=fp32", "monitor.every=2",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def words(source: Path, out: Path, *more: str) -> list[str]:
    return [f"source={source}", f"out={out}", "format=ffcv", "size=32", "samples_per_shard=7", "workers=2", *more]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 lossless images of 32 x 32 with classes, held back a third."""
    return two_classes(tmp_path_factory.mktemp("set") / "images", side=32)


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "beton"
    record = shard(*words(images, out), quiet=True)
    assert record["images"] == 24 and record["shards"] == record["made"] == 4
    assert record["bytes"] == (out / "images.beton").stat().st_size
    return out


@pytest.fixture(scope="module")
def run(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in a process of its own, which says nothing but what a run from files would say."""
    place = tmp_path_factory.mktemp("runs") / "ffcv"
    command = [sys.executable, "-m", "cass_scale", "pretrain", "--quiet", *RUN, f"data.path={made}", f"run.dir={place}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return place


def test_a_beton_is_recognised_and_gives_the_weights_and_scores_of_the_folder(
    images: Path, made: Path, run: Path, tmp_path: Path
) -> None:
    record = pretrain(*RUN, f"data.path={images}", f"run.dir={tmp_path / 'folder'}", "stream.workers=0", quiet=True)
    assert record["steps"] == records.read(run)["steps"] == 3
    for arm in ("cnn", "vit"):
        one, two = (load_file(folder / "export" / f"{arm}.safetensors") for folder in (run, tmp_path / "folder"))
        assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    scored = (  # the beton's stream has no cache to set, the folder's has
        evaluate(f"run.dir={run}", "device=cpu", quiet=True),
        evaluate(f"run.dir={run}", f"data.path={images}", "device=cpu", quiet=True),
        evaluate(f"run.dir={tmp_path / 'folder'}", f"data.path={made}", "device=cpu", quiet=True),
    )
    assert scored[0]["arms"] == scored[1]["arms"] == scored[2]["arms"]


def test_the_null_control_and_noise_run_on_a_beton(made: Path, tmp_path: Path) -> None:
    keys = [key for key in RUN if not key.startswith("method")]
    record = pretrain(
        *keys, "method=cass_null", f"data.path={made}", "data.noise=true", f"run.dir={tmp_path}/run", quiet=True
    )
    assert record["status"] == "done"


@pytest.mark.parametrize("after", [3, 17])
def test_killed_and_run_again_ends_with_the_same_bytes(
    after: int, images: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "broken"
    child = os.fork()
    if child == 0:
        verb.Watch.__call__ = lambda watch: _count(watch, after)  # type: ignore[method-assign]
        shard(*words(images, out), quiet=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == ["shards.json"]
    assert main(["pretrain", *RUN, f"data.path={out}", f"run.dir={tmp_path / 'run'}"]) == 3
    assert "the beton is not whole; finish with the same `cass-scale shard` command" in capsys.readouterr().err
    assert main(["shard", *words(images, out)]) == 0
    assert f"4 parts of one beton, {after // 7} of them made before" in capsys.readouterr().err
    assert contents(out) == contents(made)
    assert main(["shard", *words(images, out)]) == 0
    assert "4 of them made before" in capsys.readouterr().err


def _count(watch: Any, after: int) -> None:
    watch.done += 1
    if watch.done > after:
        os.kill(os.getpid(), signal.SIGKILL)


def test_streams_that_cannot_read_a_beton_are_refused(made: Path, images: Path) -> None:
    config = compose_config("pretrain", [f"data.path={made}"])
    assert config["data"]["_target_"].endswith("shards.shards")
    assert config["stream"] == {"_target_": "cass_scale.data.ffcv.FFCVStream", "workers": "auto"}
    assert compose_config("pretrain", ["data=shards", f"data.path={made}"])["stream"] == config["stream"]
    with pytest.raises(ConfigError, match=r"stream=webdataset cannot read the shards in .*; use stream=ffcv"):
        compose_config("pretrain", [f"data.path={made}", "stream=webdataset"])
    with pytest.raises(ConfigError, match=r"unknown key stream.cache_bytes"):
        compose_config("pretrain", [f"data.path={made}", "stream.cache_bytes=0"])


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["format=webdataset", "mode=jpg"], 2, "mode=jpg is one of format=ffcv; tars hold image files"),
        (["mode=jpg", "quality=null"], 2, "quality=null: mode=jpg needs that of its JPEGs"),
        (["mode=png", "jpg_share=2"], 2, "2 problems in the configuration"),
        (["mode=mixed"], 2, "jpg_share: None -> 0.5; mode: raw -> mixed"),
        (["size=16"], 2, "holds another conversion (size: 32 -> 16)"),
    ],
)
def test_refusals(
    more: list[str], code: int, said: str, images: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {word.split("=")[0]: word for word in words(images, made, *more)}
    assert main(["shard", *chosen.values()]) == code
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown


def flip(path: Path, at: int, by: bytes) -> None:
    """Other bytes, the same size and time."""
    stat, raw = path.stat(), bytearray(path.read_bytes())
    raw[at : at + len(by)] = by
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_verify_reads_every_byte_of_a_beton(mode: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "beton"
    shard(*words(images, out, f"mode={mode}"), quiet=True)
    found, folder = (verify(data={"path": path}, quiet=True)["data"] for path in (out, images))
    assert found["damaged"] == [] and found["images"] == folder["images"] == 24
    assert found["copies"] == folder["copies"] and found["sizes"]["width"] == folder["sizes"]["width"]
    address = beton.read_images(out / "images.beton", 24)[5][3]
    flip(out / "images.beton", address + 20, b"xyz")
    record = verify(data={"path": out}, quiet=True)
    damaged = {one["key"]: one["why"] for one in record["data"]["damaged"]}
    assert list(damaged) == ["images.beton", "images.beton: 05.png"] and record["exit_code"] == 3
    assert "is not that of shards.json" in damaged["images.beton"] and "sha256" in damaged["images.beton: 05.png"]
    assert record["data"]["images"] == 23


def test_verify_of_a_beton_with_broken_tables_or_without_one(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "beton"))
    table = beton.HEADER.itemsize + beton.FIELDS.nbytes
    flip(out / "images.beton", table + 1, b"\x09")  # width of row 0
    flip(out / "images.beton", table + beton.SAMPLE.itemsize + 5, b"\xff" * 8)  # address of row 1
    damaged = {one["key"]: one["why"] for one in verify(data={"path": out}, quiet=True)["data"]["damaged"]}
    assert damaged["images.beton: 00.png"] == "its pixels are not those of 9 x 32"
    assert damaged["images.beton: 01.png"] == "the shard is cut off before its end"
    (out / "images.beton").unlink()
    with pytest.raises(DataError, match=r"images.beton cannot be read: No such file"):
        verify(data={"path": out}, quiet=True)


def test_images_of_several_sizes_need_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "images", "0.png", "1.png", side=20)
    fill(tmp_path / "images", "2.png", side=30)
    line = ["shard", f"source={tmp_path / 'images'}", f"out={tmp_path / 'out'}", "format=ffcv"]
    assert main([*line, "size=null"]) == 3
    assert "2.png comes to 30 x 30 px and " in (said := capsys.readouterr().err) and "give size=PX" in said
    assert not (tmp_path / "out").exists(), "found before anything is written"
    assert main([*line, "size=16", "mode=mixed", "--dry-run"]) == 0
    assert main([*line, "size=16", "mode=mixed"]) == 0
    assert shards(tmp_path / "out").sizes[0] == 16 * 16 * 3


def test_shards_of_another_format_become_a_beton_and_not_back(
    images: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(f"source={images}", f"out={tmp_path / 'tars'}", "size=null", quiet=True)
    shard(*words(tmp_path / "tars", tmp_path / "beton"), quiet=True)
    assert (tmp_path / "beton/images.beton").read_bytes() == (made / "images.beton").read_bytes()
    assert main(["shard", f"source={made}", f"out={tmp_path / 'back'}"]) == 3
    assert "holds a beton, no tars: only stream=ffcv reads it" in capsys.readouterr().err
