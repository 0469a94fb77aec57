"""Hosts that do not see the same run folder, or the same images: all ranks refuse to begin, and say where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as td

from cass_scale import dist, records
from cass_scale.data import sources
from cass_scale.errors import ConfigError
from cass_scale.verbs.folder import check_shared
from tests.short_runs import pictures

CASES = {"same": ("run", "images"), "folder": ("other", "images"), "none": ("empty", "images"), "data": ("run", "more")}


def one_rank(rank: int, folder: str) -> None:
    place = Path(folder)
    td.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    for case, names in CASES.items():
        run, images = names if rank else CASES["same"]
        try:
            check_shared(place / run, sources.folder(place / images), patience=0.1)
            said = "nothing"
        except ConfigError as error:
            said = str(error)
        (place / f"{case}-{rank}").write_text(said)
    td.destroy_process_group()


@pytest.mark.dist
def test_hosts_that_do_not_share_are_refused_on_all_ranks(tmp_path: Path) -> None:
    for number, name in enumerate(("run", "other")):
        records.create(tmp_path / name, {"started": f"2026-01-0{number + 1}"})
    for number, name in enumerate(("images", "more"), 3):
        pictures(tmp_path / name, number)
    torch.multiprocessing.start_processes(one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    said = {case: {(tmp_path / f"{case}-{rank}").read_text() for rank in range(2)} for case in CASES}
    assert said["same"] == {"nothing"}
    for case, words in (("folder", "is another folder on"), ("none", "is another folder on"), ("data", "other images")):
        assert all(words in text for text in said[case]), case


def test_one_rank_shares_with_itself(tmp_path: Path) -> None:
    records.create(tmp_path / "run", {})
    check_shared(tmp_path / "run", sources.folder(pictures(tmp_path / "images", 3)))
    assert dist.world() == 1
