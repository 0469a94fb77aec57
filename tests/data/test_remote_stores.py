"""s3:// against a real S3 server (rclone's, over TCP), gs:// against the answers of Google's JSON interface."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cass_scale.data import remote
from cass_scale.data.shards import shards
from tests.data.stores import free_port, http_store, s3_store
from tests.data.tars import grouped, sharded
from tests.data.test_remote import read, said, same

pytestmark = pytest.mark.usefixtures("own_cache", "impatient")
KEY, SECRET = "AKIAMADEUP", "made-up-and-never-shown"
TAR = "shard-000001.tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("buckets")
    sharded(grouped(place / "images", 21, kind="bmp"), place / "bucket/some where/shards")
    return place


@pytest.fixture(scope="module")
def wanted(made: Path) -> list[torch.Tensor]:
    return read(shards(made / "bucket/some where/shards"))


@pytest.fixture(scope="module")
def endpoint(made: Path) -> Iterator[str]:
    with s3_store(made, KEY, SECRET) as url:
        yield url


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of somebody with the right keys."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return monkeypatch


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_from_s3(workers: int, s3: pytest.MonkeyPatch, wanted: list[torch.Tensor]) -> None:
    assert same(read(shards("s3://bucket/some where/shards"), workers), wanted)


def test_no_credentials(s3: pytest.MonkeyPatch, wanted: list[torch.Tensor]) -> None:
    s3.delenv("AWS_ACCESS_KEY_ID")
    s3.delenv("AWS_SECRET_ACCESS_KEY")
    text = said("s3://bucket/some where/shards")
    assert "needs credentials and none were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in text
    s3.setenv("AWS_ACCESS_KEY_ID", KEY)
    s3.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert same(read(shards("s3://bucket/some where/shards")), wanted), "the same process goes on with them"


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(name: str, s3: pytest.MonkeyPatch) -> None:
    s3.setenv(name, "wrong")
    text = said("s3://bucket/some where/shards")
    assert "shards.json is refused (403 " in text and "AWS_PROFILE" in text and SECRET not in text


def test_no_such_bucket_and_no_such_folder(s3: pytest.MonkeyPatch) -> None:
    assert said("s3://other/shards").startswith("s3://other/shards/shards.json is not there (404)")
    assert said("s3://bucket/shards").startswith("s3://bucket/shards/shards.json is not there (404)")


def test_nobody_answers(s3: pytest.MonkeyPatch) -> None:
    s3.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "s3://bucket/shards/shards.json cannot be reached (Could not connect" in said("s3://bucket/shards")


def test_a_shard_that_was_replaced_cut_or_lost(s3: pytest.MonkeyPatch, made: Path) -> None:
    shutil.copytree(made / "bucket/some where/shards", made / "bucket/copy", dirs_exist_ok=True)
    tar = made / "bucket/copy" / TAR
    good = tar.read_bytes()
    tar.write_bytes(bytes(reversed(good)))
    assert "its sha256 is not that of the index, the shard was changed" in said("s3://bucket/copy")
    tar.write_bytes(good[:100])
    assert said("s3://bucket/copy").startswith(f"s3://bucket/copy/{TAR} is shorter than its index says")
    tar.unlink()
    assert said("s3://bucket/copy").startswith(f"s3://bucket/copy/{TAR} is not there (404)")


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_s3_trouble_that_passes_is_waited_out(
    fault: str, s3: pytest.MonkeyPatch, made: Path, wanted: list[torch.Tensor]
) -> None:
    """rclone makes no mistakes on demand, so this is the plain server: unsigned requests, the same client."""
    with http_store(made) as store:
        s3.setenv("AWS_ENDPOINT_URL", store.url)
        for end in (TAR, "manifest.csv", "shards.json"):
            store.faults[end] = iter([fault, fault])
        assert same(read(shards("s3://bucket/some where/shards")), wanted)


def test_google_storage(made: Path, wanted: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real gcsfs; of the service, the one request that reads an object."""
    shutil.copytree(made / "bucket/some where/shards", made / "gsbucket/shards", dirs_exist_ok=True)
    with http_store(made) as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.url)
        assert same(read(shards("gs://gsbucket/shards"), workers=1), wanted)
        assert type(remote._system("gs", os.getpid())).__name__ == "GCSFileSystem", "not the one with gRPC"
        assert said("gs://gsbucket/other").startswith("gs://gsbucket/other/shards.json is not there (404)")
        store.faults[".json"] = iter(["403"])
        text = said("gs://gsbucket/shards")
        assert "shards.json is refused (" in text and "GOOGLE_APPLICATION_CREDENTIALS" in text
