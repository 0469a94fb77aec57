"""Runs from shards at a URL: the same weights as from a folder, and no password in anything that is left or said."""

from __future__ import annotations

import base64
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from cass_scale import evaluate, pretrain, records, shard
from cass_scale.cli import compose_config, main
from cass_scale.data import remote
from cass_scale.data.index import ShardIndex
from cass_scale.data.shards import shards
from cass_scale.errors import CassScaleError, ConfigError
from cass_scale.words import is_url, redact
from tests.data.images import fill, labels_csv
from tests.data.stores import HttpStore, free_port, http_store
from tests.short_runs import short

PASSWORD, TOKEN = "s3cr;t!", "t0ken%2Fwith=signs"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpStore]:
    """24 lossless images with classes, held back a third, as shards on a server."""
    root = tmp_path_factory.mktemp("set")
    keys = [f"{i:02d}.png" for i in range(24)]
    fill(root / "images", *keys, side=40)
    rows = [(key, "ab"[i % 2], "test" if i > 15 else "train") for i, key in enumerate(keys)]
    labels_csv(root / "images", "path,label,split", *rows)
    shard(f"source={root / 'images'}", f"out={root / 'store/shards'}", "size=null", "samples_per_shard=7", quiet=True)
    with http_store(root / "store") as server:
        yield server


def with_secrets(store: HttpStore) -> str:
    return f"http://anna:{PASSWORD}@{store.url.removeprefix('http://')}/shards?sig={TOKEN}"


def left(folder: Path) -> bytes:
    """Everything that a run left, names of files included."""
    return b"".join(str(p).encode() + (p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*"))


def test_the_same_weights_as_from_a_folder_and_no_secret_left(
    store: HttpStore, tmp_path: Path, capfd: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    folder, far = store.root / "shards", f"data.path={with_secrets(store)}"
    short(tmp_path / "folder", f"data.path={folder}", "method=cass_contrast")
    store.headers.clear()
    record = short(tmp_path / "far", far, "method=cass_contrast", "train.max_steps=2")
    sent = base64.b64encode(f"anna:{PASSWORD}".encode()).decode()
    assert store.headers and {h.get("Authorization") for h in store.headers} == {f"Basic {sent}"}
    assert {h["query"] for h in store.headers} == {f"sig={TOKEN}".replace("%2F", "/")}
    assert record["data"]["path"] == f"{store.url}/shards" and f"data.path={store.url}/shards" in record["command"]
    other = far.replace(TOKEN, "renewed").replace("/shards?", "/shards/?")
    assert short(tmp_path / "far", other, "method=cass_contrast")["steps"] == 3, "the same run, with another token"
    for arm in ("cnn", "vit"):
        one, two = (load_file(tmp_path / run / f"export/{arm}.safetensors") for run in ("folder", "far"))
        assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    config = yaml.safe_load((tmp_path / "far/config.yaml").read_text())
    assert config["data"]["path"] == f"{store.url}/shards" and config["stream"]["remote_cache_bytes"] == 32 << 30
    own, again = evaluate(f"run.dir={tmp_path / 'far'}", "device=cpu"), f"data.path={with_secrets(store)}"
    assert evaluate(f"run.dir={tmp_path / 'folder'}", again, "device=cpu")["arms"] == own["arms"]
    assert main(["pretrain", far, "--dry-run", "train.device=cpu"]) == 0
    shown = "".join(capfd.readouterr()).encode()
    assert b"16 training images of 24" in shown
    everything = left(tmp_path) + shown
    assert [s for s in (PASSWORD, TOKEN, "renewed", sent, "anna") if s.encode() in everything] == []


def test_shards_at_a_url_become_smaller_shards_here(store: HttpStore, tmp_path: Path, own_cache: Path) -> None:
    record = shard(f"source={store.url}/shards", f"out={tmp_path / 'small'}", "size=16", "quality=null", quiet=True)
    made = shards(tmp_path / "small")
    assert record["images"] == len(made) == 24 and made.place == str(tmp_path / "small")
    assert str(store.url) not in (tmp_path / "small/manifest.csv").read_text()
    assert ShardIndex.read(tmp_path / "small/shard-000000.index").samples[0].length < 2000
    assert not list(own_cache.rglob("*.tar")), "what is read once is not kept"


def test_a_store_that_fails_ends_a_run_that_can_be_resumed(
    store: HttpStore, tmp_path: Path, impatient: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    words = [f"data.path={store.url}/shards", "stream.remote_cache_bytes=0", "train.save_every=1"]
    store.faults["shard-000001.tar"] = iter(["", "", *["500"] * 1000])
    with pytest.raises(CassScaleError) as error:
        short(tmp_path / "run", *words)
    store.faults.clear()
    record = records.read(tmp_path / "run")
    assert record["status"] == "failed" and record["error"] == str(error.value) and error.value.exit_code == 3
    assert f"{store.url}/shards/shard-000001.tar: given up after" in record["error"]
    assert short(tmp_path / "run", *words)["status"] == "done"


def test_errors_hide_what_a_url_hides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    dead = f"127.0.0.1:{free_port()}/shards"
    far = f"data.path=http://anna:{PASSWORD}@{dead}?sig={TOKEN}"
    assert main(["pretrain", far]) == 3
    assert main(["pretrain", far, far.replace("anna", "bert")]) == 2
    assert main(["pretrain", far, "stream=folder"]) == 2
    assert main(["pretrain", far, "data=folder"]) == 2
    monkeypatch.setattr(sys, "argv", ["cass-scale", "pretrain", far, "--debug"])
    with pytest.raises(CassScaleError) as error:
        main()
    assert sys.argv[2] == f"data.path=http://{dead}", "trackers record it"
    shown = capsys.readouterr().err + "".join(traceback.format_exception(error.value))
    assert f"http://{dead}/shards.json cannot be reached" in shown and "data=folder cannot read" in shown
    assert all(secret not in shown for secret in (PASSWORD, TOKEN, "anna", "bert"))


def test_a_url_implies_shards_and_their_stream() -> None:
    config = compose_config("pretrain", ["data.path=s3://bucket/a b/shards/"])
    assert config["data"]["path"] == "s3://bucket/a b/shards"
    assert config["data"]["_target_"].endswith("shards.shards")
    assert config["stream"]["_target_"].endswith("WebDatasetStream")
    with pytest.raises(ConfigError, match=r"stream=folder cannot read the shards in data.path=s3://bucket"):
        compose_config("pretrain", ["data.path=s3://bucket/x", "stream=folder"])


@pytest.mark.parametrize("value", [-1, "auto"])
def test_the_size_of_the_cache_is_checked(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=f"stream.remote_cache_bytes={value}: a whole number of at least 0"):
        pretrain("stream=webdataset", "data=shards", "data.path=s3://b/x", f"stream.remote_cache_bytes={value}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://anna:pw@host/a/b?sig=x&y=z", "https://host/a/b"),
        ("https://anna:p@w@host:80/a@b/c", "https://host:80/a@b/c"),
        ("get https://a:b@host/x?y, then s3://bucket/k@1/z", "get https://host/x then s3://bucket/k@1/z"),
        ("no URL: a@b?c /x/y", "no URL: a@b?c /x/y"),
    ],
)
def test_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert is_url(text) == (text[:5] in ("https", "s3://"))
