"""Published layouts: from the folder that a set is downloaded as to its images, labels, groups and splits.

`configs/data/*.yaml` name these functions, and say where each layout is described. Each takes the folder and raises
DataError where it is laid out otherwise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from cass_scale.data.expand import Hdf5, Npz, Part, expand
from cass_scale.data.layouts import CSV, Listing, read, rows, tidy, walk
from cass_scale.data.manifest import NEGATIVE, SPLITS
from cass_scale.data.sources import Found
from cass_scale.errors import ConfigError, DataError, MissingExtra

DERMOFIT = ("AK", "BCC", "DF", "IEC", "MEL", "ML", "PYO", "SCC", "SK", "VASC")
ISIC = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
APTOS = {"0": "0 no DR", "1": "1 mild", "2": "2 moderate", "3": "3 severe", "4": "4 proliferative DR"}
TUMOR = {"0": "normal", "1": "tumor"}
PCAM = "camelyonpatch_level_2_split_{}_{}"
PERSON = re.compile(r"person\d+|(NORMAL2-)?IM-\d+|(BACTERIA|VIRUS|NORMAL)-\d+")

Row = dict[str, str]


class Entry(NamedTuple):
    """What a table says about one image, which is named as `name_of` of `by_table` names files."""

    image: str
    label: str
    group: str = ""
    split: str = ""


def below(root: Path, *marks: str) -> Path:
    """The folder that holds all `marks` (names, or patterns): `root`, or the one in it that does."""
    if not root.is_dir():
        raise DataError(f"data.path={root} is no folder")
    inside = sorted(path for path in root.iterdir() if path.is_dir())
    found = [place for place in (root, *inside) if all(any(place.glob(mark)) for mark in marks)]
    if len(found) > 1 and found[0] != root:
        raise DataError(f"{found[0]} and {found[1]} both hold {', '.join(marks)}; give one of them as data.path")
    if not found:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
        raise DataError(f"looked for {', '.join(marks)} in data.path={root} and in its folders; found {there}")
    return found[0]


def by_folders(root: Path, names: Sequence[str], keep: Callable[[str], bool] = lambda key: True) -> Found:
    """`class/image` or `split/class/image` below the folders `names`; what else lies there is left alone."""
    files = {key: stat for key, stat in walk(root).items() if key.partition("/")[0] in names and keep(key)}
    return Found(root, files, read(root, files, "folders"))


def by_csv(root: Path) -> Found:
    """What the labels.csv in `root` names."""
    files = walk(root)
    return Found(root, files, read(root, files, "csv"))


def stem(key: str) -> str:
    """File name without extension."""
    return PurePosixPath(key).stem


def by_table(root: Path, source: str, entries: Iterable[Entry], name_of: Callable[[str], str] = stem) -> Found:
    """The images that the entries name, wherever they lie below `root`; one that is not there is a bad file."""
    files = walk(root)
    places: dict[str, list[str]] = defaultdict(list)
    for key in files:
        places[name_of(key)].append(key)
    out, seen = Listing([], [], [], [], []), set()
    for entry in entries:
        first, *more = places.get(entry.image, [entry.image])
        if more:
            raise DataError(f"{root} holds {entry.image} twice, as {first} and {more[0]}; keep one")
        if first in seen or first.startswith("/") or ".." in first.split("/"):
            why = "twice; keep one row" if first in seen else "which leads out of the folder"
            raise DataError(f"{source} in {root} names {entry.image} {why}")
        seen.add(first)
        for column, value in zip(out, (first, tidy(entry.label), entry.group, entry.split), strict=False):
            column.append(value)
    out.notes.append(f"labels from {source} ({len(out.keys)} rows)")
    if left := len(files.keys() - seen):
        out.notes.append(f"{left} images are not named in {source} and are left out")
    return Found(root, files, out)


def table(path: Path, *needed: str) -> list[Row]:
    """All rows of a CSV file that has these columns."""
    return [row for _, row in rows(path, *needed)]


def hot(row: Row, columns: Iterable[str], values: Sequence[str] = ("1", "1.0")) -> list[str]:
    """Those columns whose cell is one of `values`."""
    return [column for column in columns if row[column].strip() in values]


def named(value: str, names: dict[str, str]) -> str:
    """The class that a number stands for. Raises DataError."""
    if value not in names:
        raise DataError(f"a label is {value!r}, which is not one of {', '.join(names)}")
    return names[value]


def autoimmune(root: Path) -> Found:
    """Biopsies with a labels.csv: path, label (cell classes joined with |), patient_id."""
    return by_csv(below(root, CSV))


def dermofit(root: Path) -> Found:
    """`class/lesion/lesion.png`, with a mask beside each image."""
    return by_folders(below(root, *DERMOFIT), DERMOFIT, lambda key: not stem(key).endswith("mask"))


def brain_mri(root: Path) -> Found:
    """`Training/class/image` and `Testing/class/image`."""
    names = ("Training", "Testing")
    return by_folders(below(root, *names), names)


def isic2019(root: Path) -> Found:
    """Classes from the one-hot ground truth; images of one `lesion_id` are a group, without one they stand alone."""
    truth, about = (f"ISIC_2019_Training_{name}.csv" for name in ("GroundTruth", "Metadata"))
    root = below(root, truth, about)
    lesion = {row["image"]: row["lesion_id"] for row in table(root / about, "image", "lesion_id")}
    found = table(root / truth, "image", *ISIC)
    entries = (Entry(row["image"], "|".join(hot(row, ISIC)), lesion.get(row["image"], "")) for row in found)
    return by_table(root, truth, entries)


def pcam(root: Path) -> Found:
    """HDF5 files, unpacked from .gz; groups are the slides, where the files `_meta.csv` are there."""
    files = [PCAM.format(part, f"{array}.h5") for part in ("train", "valid", "test") for array in "xy"]
    root = below(root, *files)
    place = expand("pcam", [root / file for file in files], [_pcam(root, part) for part in ("train", "valid", "test")])
    return by_csv(place)


def _pcam(root: Path, part: str) -> Part:
    x, y = (Hdf5(root / PCAM.format(part, f"{array}.h5"), array, "data=pcam") for array in "xy")
    labels = [TUMOR[str(int(np.any(one)))] for one in y.rows()]
    about = root / PCAM.format(part, "meta.csv")
    slides = [row["wsi"] for row in table(about, "wsi")] if about.is_file() else [""] * len(labels)
    return Part({"valid": "val"}.get(part, part), x.shape(), x.rows, labels, slides)


def pcam_kaggle(root: Path) -> Found:
    """`train/id.tif` and train_labels.csv; the test images have no labels and are left out."""
    root = below(root, "train_labels.csv", "train")
    found = table(root / "train_labels.csv", "id", "label")
    return by_table(root, "train_labels.csv", (Entry(row["id"], named(row["label"], TUMOR)) for row in found))


def aptos2019(root: Path) -> Found:
    """`train_images/id_code.png` and train.csv; the test images have no labels and are left out."""
    root = below(root, "train.csv", "train_images")
    found = table(root / "train.csv", "id_code", "diagnosis")
    return by_table(root, "train.csv", (Entry(row["id_code"], named(row["diagnosis"], APTOS)) for row in found))


def chest_pneumonia(root: Path) -> Found:
    """`split/class/image`; a file's name begins with its patient: `person1` of test is not that of train."""
    found = by_folders(below(root, "train", "test"), ("train", "val", "test"))
    listing, groups = found.listing, []
    for key, split in zip(listing.keys, listing.splits, strict=True):
        person = PERSON.match(PurePosixPath(key).name)
        again = "test " if person and split == "test" and person[0].startswith("person") else ""
        groups.append(f"{again}{person[0]}" if person else "")
    return found._replace(listing=listing._replace(groups=groups))


def nih_chestxray14(root: Path) -> Found:
    """Findings joined with | from Data_Entry_2017; the official lists of images; groups are patients."""
    lists = {"train": "train_val_list.txt", "test": "test_list.txt"}
    root = below(root, "Data_Entry_2017*.csv", *lists.values())
    split = {name: part for part, file in lists.items() for name in (root / file).read_text().split()}
    source = max(path.name for path in root.glob("Data_Entry_2017*.csv"))  # _v2020 is the later one
    entries = []
    for row in table(root / source, "Image Index", "Finding Labels", "Patient ID"):
        image = row["Image Index"]
        if image not in split:
            raise DataError(f"{root}: {image} is in {source}, but in neither of {', '.join(lists.values())}")
        entries.append(Entry(image, row["Finding Labels"], row["Patient ID"], split[image]))
    return by_table(root, source, entries, lambda key: PurePosixPath(key).name)


def chexpert(root: Path, *, uncertain: Literal["zeros", "ones", "ignore"], findings: Sequence[str]) -> Found:
    """`patient/study/view.jpg` with train.csv and valid.csv; groups are patients; what a report does not mention is 0.

    `uncertain` (a cell of -1): `zeros`, `ones`, or `ignore`, whose images are without labels.
    """
    if uncertain not in ("zeros", "ones", "ignore"):
        raise ConfigError(f"data.layout.uncertain={uncertain!r} is unknown; choose zeros, ones or ignore")
    root = below(root, "train.csv", "valid.csv")
    positive = ("1.0", "1", "-1.0", "-1") if uncertain == "ones" else ("1.0", "1")
    entries = []
    for split, file in (("train", "train.csv"), ("val", "valid.csv")):
        for row in table(root / file, "Path", *findings):
            label = "|".join(hot(row, findings, positive)) or NEGATIVE
            if uncertain == "ignore" and hot(row, findings, ("-1.0", "-1")):
                label = ""
            image = _view(row["Path"])
            entries.append(Entry(image, label, image.partition("/")[0], split))
    return by_table(root, "train.csv and valid.csv", entries, _view)


def _view(path: str) -> str:
    """patient/study/view.jpg: the folders above differ between the downloads."""
    return "/".join(PurePosixPath(path).parts[-3:])


def medmnist(root: Path, *, set: str, size: int) -> Found:
    """An archive `set.npz` or `set_size.npz`; classes, splits and numbers from the package medmnist."""
    try:
        from medmnist import INFO
    except ImportError as error:
        raise MissingExtra("medmnist", "sets", "data=medmnist") from error
    flat = [name for name in INFO if not name.endswith("3d")]
    if set not in flat:
        raise ConfigError(f"data.layout.set={set!r} is not one of its sets of images: {', '.join(flat)}")
    about = INFO[set]
    file = f"{set}.npz" if size == 28 else f"{set}_{size}.npz"
    archive = Npz(below(root, file) / file)
    multilabel = about["task"].startswith("multi-label")
    parts = [_medmnist(archive, split, about["label"], multilabel) for split in SPLITS]
    found = by_csv(expand(set, [archive.path], parts))
    return found._replace(expected={**about["n_samples"], "classes": dict.fromkeys(about["label"].values())})


def _medmnist(archive: Npz, split: str, classes: dict[str, str], multilabel: bool) -> Part:
    values = archive.labels(f"{split}_labels", len(classes) if multilabel else 1)
    names = list(classes.values())
    if multilabel:
        labels = ["|".join(c for c, hit in zip(names, row, strict=True) if hit) or NEGATIVE for row in values]
    else:
        labels = [named(str(row[0]), classes) for row in values]
    name = f"{split}_images"
    return Part(split, archive.shape(name), lambda: archive.images(name), labels, [""] * len(labels))
