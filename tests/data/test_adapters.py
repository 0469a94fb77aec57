"""Published sets, each on a small tree of the layout that it is downloaded in."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cass_scale.data.decode import read_image
from cass_scale.data.manifest import Bad, Manifest
from cass_scale.errors import ConfigError, DataError, MissingExtra
from tests.data.images import fill, labels_csv, noise
from tests.data.sets import ABOUT, TRUTH, chexpert, isic, nih, take, write

pytestmark = pytest.mark.usefixtures("own_cache")
PARTS = {"train": 4, "val": 2, "test": 2}


def rows(m: Manifest) -> dict[str, tuple[str, str, str]]:
    """Label, group and split by key."""
    return dict(zip(m.keys, zip(m.labels, m.groups, m.splits, strict=True), strict=True))


def test_isic2019_keeps_lesions_whole_and_images_without_one_apart(home: Path) -> None:
    m = take("isic2019", isic(home), "data.split=[0.5,0.0,0.5]")
    assert len(m) == 12 and m.classes == ("MEL", "NV") and not m.multilabel
    assert m.groups[:3] == ("HAM_0", "HAM_0", "HAM_1") and m.groups[10:] == ("", "")
    assert len(set(zip(m.groups[:10], m.splits[:10], strict=True))) == 5, "no lesion is divided"
    assert m.keys[1] == "ISIC_2019_Training_Input/ISIC_0000001_downsampled.jpg" and m.labels[2] == "NV"
    assert f"1 images are not named in {TRUTH} and are left out" in m.notes


def test_a_set_in_the_folder_that_its_archive_makes(home: Path) -> None:
    isic(home / "download")
    m = take("isic2019", home)
    assert m.root == home / "download" and len(m) == 12


def test_autoimmune(home: Path) -> None:
    fill(home, *(f"{i}.tif" for i in range(14)))
    about = ((f"{i}.tif", "tfh|b" if i % 2 else "other", f"p{i // 2}") for i in range(14))
    labels_csv(home, "path,label,patient_id", *about)
    m = take("autoimmune", home)
    assert m.multilabel and m.classes == ("b", "other", "tfh")
    assert len(set(m.groups)) == len(set(zip(m.groups, m.splits, strict=True))) == 7
    assert any("14 images, expected 198" in note and "none of class tfh217" in note for note in m.notes)


def test_dermofit_without_its_masks(home: Path) -> None:
    names = ("AK", "BCC", "DF", "IEC", "MEL", "ML", "PYO", "SCC", "SK", "VASC")
    fill(home, *(f"{c}/{i}{c}/{i}{c}{mask}.png" for c in names for i in range(3) for mask in ("", "mask")))
    m = take("dermofit", fill(home, "overview.png"))
    assert len(m) == 30 and m.classes == names and not any("mask" in key for key in m.keys)
    assert m.labels[0] == "AK" and set(m.splits) > {"train"}


def test_brain_mri_follows_the_curator(home: Path) -> None:
    names = ("glioma", "meningioma", "notumor", "pituitary")
    fill(home, *(f"Training/{c}/Tr-{c[:2]}_{i}.jpg" for c in names for i in range(3)))
    fill(home, *(f"Testing/{c}/Te-{c[:2]}_0.jpg" for c in names))
    m = take("brain_mri", home)
    assert m.classes == names and Counter(m.splits) == {"train": 12, "test": 4}
    assert rows(m)["Testing/notumor/Te-no_0.jpg"] == ("notumor", "", "test")


def test_pcam_kaggle_and_aptos_leave_out_the_test_images(home: Path) -> None:
    patches, eyes = home / "patches", home / "eyes"
    fill(patches, *(f"train/a{i}.tif" for i in range(10)), "test/b.tif")
    write(patches / "train_labels.csv", "id,label", *((f"a{i}", i % 2) for i in range(10)))
    fill(eyes, *(f"train_images/{i:x}e.png" for i in range(10)), "test_images/ffe.png")
    write(eyes / "train.csv", "id_code,diagnosis", *((f"{i:x}e", i % 5) for i in range(10)))
    one, two = take("pcam_kaggle", patches), take("aptos2019", eyes)
    assert len(one) == len(two) == 10 and one.labels[:2] == ("normal", "tumor")
    assert two.classes == ("0 no DR", "1 mild", "2 moderate", "3 severe", "4 proliferative DR"), "in order of severity"
    write(eyes / "train.csv", "id_code,diagnosis", ("0e", "7"))
    with pytest.raises(DataError, match=r"a label is '7', which is not one of 0, 1, 2, 3, 4\n .*aptos2019-blindness"):
        take("aptos2019", eyes)


def test_chest_pneumonia_tells_patients_by_file_names(home: Path) -> None:
    keys = (
        "train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg",
        "train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/NORMAL2-IM-0115-0001.jpeg", "val/NORMAL/other.jpeg",
        "test/PNEUMONIA/person1_virus_6.jpeg", "test/NORMAL/BACTERIA-7-0001.jpeg",
    )  # fmt: skip
    fill(home / "chest_xray", *keys, "chest_xray/train/NORMAL/IM-0115-0001.jpeg")
    about = rows(take("chest_pneumonia", home))
    assert [about[key][1] for key in keys] == [
        "person1", "person1", "IM-0115", "NORMAL2-IM-0115", "", "test person1", "BACTERIA-7",
    ]  # fmt: skip
    assert len(about) == 7, "the archive holds a second copy of itself"
    assert about[keys[5]][2] == "test" and about[keys[4]][2] == "val" and about[keys[0]][0] == "PNEUMONIA"


def test_nih_chestxray14(home: Path) -> None:
    m = take("nih_chestxray14", nih(home))
    assert m.multilabel and m.classes == ("Edema", "Hernia", "Mass"), "No Finding is none of the classes"
    assert m.labels[1] == "Hernia|Mass" and m.splits == ("train",) * 6 + ("test",) * 2 and m.groups[2:4] == ("1", "1")
    assert m.label_tensor()[:2].tolist() == [[0, 0, 0], [0, 1, 1]]
    (home / "test_list.txt").write_text("")
    with pytest.raises(DataError, match=r"00000003_000.png is in Data_Entry_2017_v2020.csv, but in neither of train_v"):
        take("nih_chestxray14", home)


@pytest.mark.parametrize(
    ("policy", "labels"),
    [
        ("zeros", ("No Finding", "Cardiomegaly", "No Finding")),
        ("ones", ("No Finding", "Cardiomegaly|Edema", "Pleural Effusion")),
        ("ignore", ("No Finding", "", "")),
    ],
)
def test_chexpert_and_its_uncertain_cells(policy: str, labels: tuple[str, ...], home: Path) -> None:
    m = take("chexpert", chexpert(home), f"data.layout.uncertain={policy}")
    assert m.labels == (*labels, "Atelectasis|Consolidation", "Cardiomegaly", "No Finding")
    assert m.splits == ("train",) * 4 + ("val",) * 2 and m.groups == tuple(f"patient{i // 2:05d}" for i in range(6))
    assert m.keys[0] == "train/patient00000/study1/view1_frontal.jpg" and "Fracture" not in m.classes


def test_chexpert_with_other_findings(home: Path) -> None:
    m = take("chexpert", chexpert(home), "data.layout.findings=[Fracture,Edema]")
    assert m.labels == ("No Finding", "Fracture", "No Finding", "No Finding", "No Finding", "Fracture")
    with pytest.raises(DataError, match=r"train.csv has no column `Gout`"):
        take("chexpert", home, "data.layout.findings=[Gout]")
    with pytest.raises(ConfigError, match=r"data.layout.uncertain='maybe' is unknown; choose zeros, ones or ignore"):
        take("chexpert", home, "data.layout.uncertain=maybe")


def pcam(home: Path) -> Path:
    home.mkdir()
    for number, (part, n) in enumerate(zip(("train", "valid", "test"), PARTS.values(), strict=True)):
        for array, values in (("x", noise(n, 8, 8, 3, seed=number)), ("y", (np.arange(n) % 2).reshape(n, 1, 1, 1))):
            with h5py.File(home / f"camelyonpatch_level_2_split_{part}_{array}.h5", "w") as file:
                file[array] = values.astype(np.uint8)
    slides = ((1, f"camelyon16_train_{i // 2}") for i in range(PARTS["train"]))
    write(home / "camelyonpatch_level_2_split_train_meta.csv", "coord_x,wsi", *slides)
    return home


def test_pcam_is_written_out_once(home: Path, own_cache: Path) -> None:
    m = take("pcam", pcam(home))
    about = rows(m)
    assert Counter(m.splits) == PARTS and m.root.is_relative_to(own_cache / "sets")
    assert about["train/0000/0000003.png"] == ("tumor", "camelyon16_train_1", "train")
    assert about["val/0000/0000000.png"] == ("normal", "", "val")
    pixels = read_image(m.root / "val/0000/0000001.png", None)
    assert np.array_equal(pixels, noise(2, 8, 8, 3, seed=1)[1])
    before = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.png")}
    assert take("pcam", home) == m and {p: p.stat().st_mtime_ns for p in own_cache.rglob("*.png")} == before


def test_pcam_that_cannot_be_read(home: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = pcam(home) / "camelyonpatch_level_2_split_test_x.h5"
    good = broken.read_bytes()
    broken.write_bytes(good[:200])
    with pytest.raises(DataError, match=r"split_test_x.h5 cannot be read \((.|\n)*download it again\n .*basveeling"):
        take("pcam", home)
    broken.rename(home / "camelyonpatch_level_2_split_test_x.h5.gz")
    with pytest.raises(DataError, match=r"looked for .*test_y.h5 in data.path=.*found .*train_meta.csv"):
        take("pcam", home)
    broken.write_bytes((home / "camelyonpatch_level_2_split_train_x.h5").read_bytes())
    with pytest.raises(DataError, match=r"pcam: 4 images, 2 labels and 2 groups in test"):
        take("pcam", home)
    broken.write_bytes(good)
    monkeypatch.setattr("cass_scale.data.expand.free_disk", lambda folder: 7 * 4096)
    with pytest.raises(DataError, match=r"take up to .* GiB as PNG in .*set CASS_SCALE_CACHE to a folder with room"):
        take("pcam", home)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"data=pcam needs the package h5py: `pip install 'cass-scale\[sets\]'`"):
        take("pcam", home)
    assert not list(own_cache.rglob("*.png"))


def medmnist(home: Path, name: str, width: int, *size: int) -> Path:
    """An archive of PARTS images; label i is class i, or for several classes the bits of i."""
    home.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for part, n in PARTS.items():
        arrays[f"{part}_images"] = noise(n, *size)
        bits = np.arange(n)[:, None] >> np.arange(width)[None] & 1
        arrays[f"{part}_labels"] = bits.astype(np.uint8) if width > 1 else np.arange(n, dtype=np.uint8)[:, None]
    np.savez_compressed(home / name, **arrays)
    return home


def test_medmnist_by_the_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("data.layout.set=bloodmnist", "data.layout.size=64")
    m = take("medmnist", medmnist(home, "bloodmnist_64.npz", 1, 64, 64, 3), *words)
    assert m.name == "bloodmnist" and Counter(m.splits) == PARTS and m.labels[-2:] == ("basophil", "eosinophil")
    about = dict(zip(m.keys, m.labels, strict=True))
    assert about["train/0000/0000002.png"] == "erythroblast"
    assert np.array_equal(read_image(m.root / "train/0000/0000003.png", None), noise(4, 64, 64, 3)[3])
    with pytest.raises(DataError, match=r"4 train, expected 11959; .* if the publisher has changed it, data.counts=no"):
        take("medmnist", home, *words, "data.counts=check")
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(MissingExtra, match=r"cass-scale\[sets\]"):
        take("medmnist", home)


def test_medmnist_with_several_labels_and_grey(home: Path) -> None:
    m = take("medmnist", medmnist(home, "chestmnist.npz", 14, 28, 28), "data.layout.set=chestmnist")
    train = [label for label, part in zip(m.labels, m.splits, strict=True) if part == "train"]
    assert m.multilabel and train == ["No Finding", "atelectasis", "cardiomegaly", "atelectasis|cardiomegaly"]


def test_archives_that_are_something_else(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.layout.set='organmnist3d' is not one of its sets of images: pathmni"):
        take("medmnist", fill(home, "a.png"), "data.layout.set=organmnist3d")
    words = ("data.layout.set=breastmnist",)
    with pytest.raises(DataError, match=r"looked for breastmnist.npz .*found a.png\n .*https://medmnist.com"):
        take("medmnist", home, *words)
    for width, size, why in (
        (1, (28, 28), r"a label is '2', which is not one of 0, 1"),
        (3, (28, 28), r"train_labels has the shape \(4, 3\), not \[N, 1\]"),
        (1, (28, 28, 28), r"a label is '2'|its train images have the shape"),
    ):
        with pytest.raises(DataError, match=why):
            take("medmnist", medmnist(home, "breastmnist.npz", width, *size), *words)
    np.savez(home / "breastmnist.npz", train_images=np.zeros(3))
    with pytest.raises(DataError, match=r"breastmnist.npz cannot be read .*train_labels.*download it again"):
        take("medmnist", home, *words)
    (home / "breastmnist.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"breastmnist.npz cannot be read"):
        take("medmnist", home, *words)


def test_other_numbers_are_an_error_that_names_both(home: Path) -> None:
    isic(home)
    with pytest.raises(
        DataError, match=r"is not isic2019 as its publisher counts it: 12 images, expected 25331"
    ) as error:
        take("isic2019", home, "data.counts=check")
    assert "; none of class BCC; " in str(error.value) and error.value.exit_code == 3
    assert "#2019" in str(error.value) and "data.counts=note" in str(error.value)
    without = [f"data.expected.classes.{c}=0" for c in ("BCC", "AK", "BKL", "DF", "VASC", "SCC")]
    words = ["data.counts=check", "data.expected.images=12", *without]
    assert len(take("isic2019", home, *words)) == 12
    truth = list(csv.reader((home / TRUTH).open()))
    truth[1][1:] = ["0.0"] * 8 + ["1.0"]
    write(home / TRUTH, ",".join(truth[0]), *truth[1:])
    with pytest.raises(DataError, match="1 of class UNK, which is not expected"):
        take("isic2019", home, *words)
    with pytest.raises(ConfigError, match=r"data.counts='maybe' is unknown; choose check or note"):
        take("isic2019", home, "data.counts=maybe")


def test_a_folder_that_is_laid_out_otherwise(home: Path) -> None:
    fill(home, "a/1.png", "b/1.png")
    with pytest.raises(DataError) as error:
        take("isic2019", home)
    said = str(error.value)
    assert said.startswith(f"looked for {TRUTH}, {ABOUT} in data.path={home} and in its folders; found a, b")
    assert "isic2019 as it is published: https://challenge.isic-archive.com" in said
    for name in ("a", "b"):
        fill(home, f"{name}/Training/x/1.png", f"{name}/Testing/x/1.png")
    with pytest.raises(DataError, match=r"/a and .*/b both hold Training, Testing; give one of them as data.path"):
        take("brain_mri", home)
    with pytest.raises(DataError, match=r"data.path=/nowhere is no folder"):
        take("brain_mri", Path("/nowhere"))


def test_tables_that_do_not_fit(home: Path) -> None:
    isic(home)
    (home / "ISIC_2019_Training_Input/ISIC_0000000.jpg").unlink()
    gone = take("isic2019", home, "data.max_bad=0.5")
    assert gone.bad == (Bad("ISIC_0000000", "listed but not there"),) and len(gone) == 11
    with pytest.raises(DataError, match=r"1 of 12 images in .* are bad, more than data.max_bad=0.01"):
        take("isic2019", home)
    fill(home, "resized/ISIC_0000003.jpg")
    with pytest.raises(DataError, match=r"holds ISIC_0000003 twice, as .*Input/ISIC_0000003.jpg and resized/ISIC"):
        take("isic2019", home)
    (home / "resized/ISIC_0000003.jpg").unlink()
    truth = list(csv.reader((home / TRUTH).open()))
    for name, why in ((truth[2][0], "twice; keep one row"), ("../../etc/x", "which leads out of the folder")):
        write(home / TRUTH, ",".join(truth[0]), *truth[1:], [name, *truth[1][1:]])
        with pytest.raises(DataError, match=f"names {name} {why}"):
            take("isic2019", home)
    write(home / ABOUT, "image,sex")
    with pytest.raises(DataError, match=r"Metadata.csv has no column `lesion_id` \(it has image, sex\)"):
        take("isic2019", home)
    (home / ABOUT).unlink()
    with pytest.raises(DataError, match=r"looked for .*Metadata.csv"):
        take("isic2019", home)
