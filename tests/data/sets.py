"""Small trees of the layouts that published sets are downloaded in."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cass_scale.cli import build, config_dir
from cass_scale.data.manifest import Manifest
from cass_scale.verbs.wire import without
from tests.data.images import fill

TRUTH, ABOUT = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"


def take(name: str, home: Path, *words: str) -> Manifest:
    """The manifest as a run makes it; the numbers are those of a small tree, so they are only noted."""
    leaf = OmegaConf.create({"data": OmegaConf.load(config_dir() / "data" / f"{name}.yaml")})
    told = OmegaConf.from_dotlist([f"data.path={home}", "data.counts=note", *words])
    config: Any = OmegaConf.to_container(OmegaConf.merge(leaf, told), resolve=True)
    manifest: Manifest = build(without(config["data"], "noise"))
    return manifest


def write(place: Path, columns: str, *rows: Any) -> None:
    """A CSV file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w", newline="") as f:
        csv.writer(f).writerows([columns.split(","), *rows])


def isic(home: Path) -> Path:
    """ISIC 2019: 5 lesions of two images, two images without one, a test image that the table does not name."""
    names = [f"ISIC_{i:07d}{'_downsampled' if i % 3 else ''}" for i in range(12)]
    fill(home, *(f"ISIC_2019_Training_Input/{name}.jpg" for name in names), "ISIC_2019_Test_Input/ISIC_9.jpg")
    hot = [["1.0" if c == i // 2 % 2 else "0.0" for c in range(9)] for i in range(12)]
    classes = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    write(home / TRUTH, classes, *((name, *row) for name, row in zip(names, hot, strict=True)))
    lesions = [f"HAM_{i // 2}" if i < 10 else "" for i in range(12)]
    write(home / ABOUT, "image,lesion_id,sex", *((n, g, "male") for n, g in zip(names, lesions, strict=True)))
    return home


def nih(home: Path, train: int = 6) -> Path:
    """NIH ChestX-ray14: 4 patients of two images, the first `train` images in train_val_list.txt."""
    names = [f"{i // 2:08d}_{i % 2:03d}.png" for i in range(8)]
    fill(home, *(f"images_{1 + i // 4:03d}/images/{name}" for i, name in enumerate(names)), side=32)
    findings = ["No Finding", "Mass|Hernia", "Mass", "No Finding", "Edema", "Mass", "Mass", "Edema|Mass"]
    rows = ((name, label, i // 2) for i, (name, label) in enumerate(zip(names, findings, strict=True)))
    write(home / "Data_Entry_2017_v2020.csv", "Image Index,Finding Labels,Patient ID", *rows)
    (home / "train_val_list.txt").write_text("\n".join(names[:train]))
    (home / "test_list.txt").write_text("\n".join(names[train:]) + "\n")
    return home


def chexpert(home: Path) -> Path:
    """CheXpert-small: 3 patients of two views, the last of them in valid."""
    keys = [f"patient{i // 2:05d}/study1/view{1 + i % 2}_frontal.jpg" for i in range(6)]
    fill(home, *(f"train/{key}" for key in keys[:4]), *(f"valid/{key}" for key in keys[4:]))
    head = "Path,Sex,No Finding,Cardiomegaly,Edema,Consolidation,Atelectasis,Pleural Effusion,Fracture"
    cells = ["1.0,,,,,,", ",1.0,-1.0,,,,1.0", ",0.0,,,,-1.0,", ",,,1.0,1.0,,", ",1.0,0.0,0,0,0,", ",0,0.0,0,,,1"]
    for part, some in (("train", slice(4)), ("valid", slice(4, 6))):
        paths = [f"CheXpert-v1.0-small/{part}/{key}" for key in keys[some]]
        write(home / f"{part}.csv", head, *((p, "F", *c.split(",")) for p, c in zip(paths, cells[some], strict=True)))
    return home
