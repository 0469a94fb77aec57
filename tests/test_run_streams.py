"""What a run asks of its stream: DALI over files and shards, tails, the fields a method needs, images for all ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from cass_scale import evaluate, records, shard
from cass_scale.cli import compose_config, main
from cass_scale.errors import ConfigError, DataError
from cass_scale.methods.cass import CASS
from tests.data.images import fill, labels_csv
from tests.short_runs import WORDS, short


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 images with classes, a third held back."""
    root, keys = tmp_path_factory.mktemp("set") / "images", [f"{i:02d}.png" for i in range(18)]
    fill(root, *keys, side=40)
    rows = [(k, "ab"[i % 2], "test" if i > 11 else "train") for i, k in enumerate(keys)]
    return labels_csv(root, "path,label,split", *rows)


@pytest.fixture(scope="module")
def shards(images: Path) -> Path:
    shard(f"source={images}", f"out={images.parent / 'shards'}", "size=null", "samples_per_shard=5", quiet=True)
    return images.parent / "shards"


def test_dali_trains_from_files_and_shards_alike_and_resumes(images: Path, shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra `dali`")
    for name, path in (("files", images), ("tars", shards)):
        words = (f"data.path={path}", "stream=dali", "method=cass_contrast")
        if name == "tars":
            short(tmp_path / name, *words, "train.max_steps=1")
        record = short(tmp_path / name, *words)
        assert record["status"] == "done" and record["steps"] == 3
        assert "nvidia-dali-cuda130" in record["versions"], "pixels depend on it"
    for arm in ("cnn", "vit"):
        one, two = (load_file(tmp_path / name / f"export/{arm}.safetensors") for name in ("files", "tars"))
        assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    own = evaluate(f"run.dir={tmp_path / 'files'}", "device=cpu", quiet=True)
    other = evaluate(f"run.dir={tmp_path / 'files'}", f"data.path={shards}", "device=cpu", quiet=True)
    assert own["arms"] == other["arms"]


def test_a_shard_that_changed_stops_a_dali_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra `dali`")
    out = tmp_path / "shards"
    shard(f"source={images}", f"out={out}", "size=null", quiet=True)
    words = [f"data.path={out}", "stream=dali", f"run.dir={tmp_path / 'run'}"]
    short(tmp_path / "run", *words[:2], "train.max_steps=1")
    tar = out / "shard-000000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    assert main(["pretrain", *WORDS[2:], *words]) == 3
    said = capsys.readouterr().err
    assert "shard-000000.tar: " in said and "the shard was changed" in said and "Traceback" not in said
    assert records.read(tmp_path / "run")["status"] == "failed"


def test_dali_reads_whatever_lies_there(images: Path, shards: Path) -> None:
    for path, kind in ((images, "sources.folder"), (shards, "shards.shards")):
        config = compose_config("pretrain", [f"data.path={path}", "stream=dali"])
        assert config["data"]["_target_"].endswith(kind) and config["stream"]["_target_"].endswith("DaliStream")
    with pytest.raises(ConfigError, match="use stream=webdataset or stream=dali"):
        compose_config("pretrain", [f"data.path={shards}", "stream=folder"])


def test_without_dali_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert main(["pretrain", *WORDS[2:], "data.path=/nowhere", "stream=dali", f"run.dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "stream=dali needs the package nvidia-dali-cuda130: `pip install 'cass-scale[dali]'`" in said
    assert "/nowhere" not in said and not (tmp_path / "run").exists()


def test_the_tail_is_recorded_and_kept(tmp_path: Path) -> None:
    words = ("train.tail=carry", "train.epochs=2", "train.save_every=1")
    short(tmp_path / "run", *words, "train.max_steps=2")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["tail"] == "carry"
    with pytest.raises(ConfigError, match=r"train.tail: carry -> drop"):
        short(tmp_path / "run", *words, "train.tail=drop")
    assert short(tmp_path / "run", *words)["steps"] == 3
    with pytest.raises(ConfigError, match=r"train.tail=keep: one of drop, carry is needed"):
        short(tmp_path / "other", "train.tail=keep")


def test_fields_that_a_method_needs_are_asked_for_before_anything_starts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CASS, "needs", frozenset({"group"}))
    with pytest.raises(
        ConfigError, match=r"method=cass needs group of every image, and FolderStream has index .*group_id"
    ):
        short(tmp_path / "run", f"data.path={images}")
    assert not (tmp_path / "run").exists()
    assert short(tmp_path / "run")["status"] == "done", "the phantom's images have patients"


@pytest.mark.dist
@pytest.mark.slow
def test_more_ranks_than_images(tmp_path: Path) -> None:
    fill(tmp_path / "images", "only.png", side=40)
    with pytest.raises(DataError, match=r"1 images are fewer than one batch of 4; set train.batch_size to at most 1"):
        short(tmp_path / "run", f"data.path={tmp_path / 'images'}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "cass_scale"]
    words = [*WORDS[2:], f"data.path={tmp_path / 'images'}", f"run.dir={tmp_path / 'run'}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "pretrain", *words], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode != 0 and "exitcode  : 3" in done.stderr
    said = (
        "1 images are fewer than one batch of 4; 2 ranks x 1 accumulated micro-batches cannot share them: start fewer,"
    )
    assert said in done.stderr and not (tmp_path / "run").exists()
