"""Bad files, bad folders, bad labels.csv, bad options: skipped and listed, or one clear message."""

from __future__ import annotations

from pathlib import Path

import pytest

from cass_scale.data import sources
from cass_scale.data.manifest import Bad
from cass_scale.errors import ConfigError, DataError
from tests.data.images import BOMB, encode, fill, labels_csv, noise, tiff

pytestmark = pytest.mark.usefixtures("own_cache")


def test_bad_files_are_skipped_and_listed(home: Path) -> None:
    fill(home, *(f"good/{i}.png" for i in range(3)), "csv.png")
    (home / "zero.png").write_bytes(b"")
    (home / "cut.png").write_bytes(encode(noise(64, 64, 3), "PNG")[:5000])
    (home / "text.jpg").write_bytes(b"404 not found")
    (home / "bomb.png").write_bytes(BOMB)
    (home / "pages.tif").write_bytes(tiff(noise(3, 8, 8), photometric="minisblack"))
    m = sources.folder(home, max_bad=0.6)
    assert len(m) == 4
    whys = {b.key: b.why for b in m.bad}
    assert list(whys) == ["bomb.png", "cut.png", "pages.tif", "text.jpg", "zero.png"]
    assert "refused before decoding" in whys["bomb.png"]
    assert "multi-page" in whys["pages.tif"]
    assert whys["zero.png"] == "zero bytes long"


def test_too_many_bad_files_stop_with_the_first_few_and_the_key(home: Path) -> None:
    fill(home, *(f"{i:03d}.png" for i in range(93)))
    for i in range(7):
        (home / f"x{i}.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        sources.folder(home)
    text = str(error.value)
    assert error.value.exit_code == 3
    assert text.startswith(f"7 of 100 images in {home} are bad, more than data.max_bad=0.01;")
    assert "  x0.png: zero bytes long\n" in text and "x5.png" not in text and text.endswith("and 2 more")
    assert len(sources.folder(home, max_bad=0.07)) == 93


def test_one_percent_is_allowed(home: Path) -> None:
    fill(home, *(f"{i:03d}.png" for i in range(99)))
    (home / "bad.png").write_bytes(b"")
    assert sources.folder(home).bad == (Bad("bad.png", "zero bytes long"),)


def test_nothing_good_stops_whatever_max_bad(home: Path) -> None:
    fill(home)
    home.mkdir()
    (home / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match="no good image is left"):
        sources.folder(home, max_bad=1.0)


def test_a_file_the_csv_names_but_is_absent(home: Path) -> None:
    fill(home, "1.png")
    labels_csv(home, "path,label", ("1.png", "a"), ("gone.png", "b"))
    assert sources.folder(home, max_bad=0.5).bad == (Bad("gone.png", "listed but not there"),)


def test_folders_that_hold_nothing_each_say_so(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.path=.*images does not exist"):
        sources.folder(home)
    home.mkdir()
    with pytest.raises(DataError, match=r"is an empty folder; images are looked for as .jpg .jpeg .png"):
        sources.folder(home)
    (home / "scan.mha").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no image in data.path=.*looked in all its folders for .jpg"):
        sources.folder(home)
    with pytest.raises(DataError, match="is a file; give the folder"):
        sources.folder(home / "scan.mha")


@pytest.mark.parametrize("path", ["../secret.png", "a/../../b.png", "/etc/x.png", "C:/x.png", "..\\x.png"])
def test_a_csv_path_must_stay_inside(home: Path, path: str) -> None:
    fill(home, "1.png")
    labels_csv(home, "path", ("1.png",), (path,))
    with pytest.raises(DataError, match=r"labels.csv line 3: .* leads out of the folder"):
        sources.folder(home)


@pytest.mark.parametrize(
    ("columns", "rows", "why"),
    [
        ("file,label", [("1.png", "a")], r"has no column `path` \(it has file, label\)"),
        ("path", [], "has no rows"),
        ("path", [("1.png",), ("",)], "has no rows|line 3: the path is empty"),
        ("path,label", [("1.png", "a"), (" ", "b")], "line 3: the path is empty"),
        ("path", [("1.png",), ("./1.png",)], "line 3: 1.png was already named in line 2"),
        ("path,split", [("1.png", "holdout")], "line 2: unknown split 'holdout'; known are train"),
    ],
)
def test_a_wrong_csv_names_the_line(home: Path, columns: str, rows: list[tuple[str, ...]], why: str) -> None:
    labels_csv(fill(home, "1.png", "2.png"), columns, *rows)
    if columns == "path" and rows and rows[-1] == ("",):
        (home / "labels.csv").write_text('path\n1.png\n""\n')
    with pytest.raises(DataError, match=why):
        sources.folder(home)


def test_a_csv_of_another_encoding(home: Path) -> None:
    fill(home, "1.png")
    (home / "labels.csv").write_bytes("path,label\n1.png,Größe\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels.csv cannot be read as CSV in UTF-8"):
        sources.folder(home)
    (home / "labels.csv").write_bytes("path,label\n1.png,Größe\n".encode("utf-8-sig"))  # as spreadsheets save it
    assert sources.folder(home).labels == ("Größe",)


def test_wrong_options_name_the_key(home: Path) -> None:
    fill(home, "1.png")
    with pytest.raises(DataError, match=r"data.labels=csv, but there is no .*labels.csv"):
        sources.folder(home, labels="csv")
    with pytest.raises(ConfigError, match=r"data.labels='xml' is unknown; choose auto"):
        sources.folder(home, labels="xml")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data.max_bad=2 must be a share"):
        sources.folder(home, max_bad=2)
