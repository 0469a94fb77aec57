"""The page: what it says about runs in several states; that it is self-contained and safe."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")
pytest.importorskip("matplotlib", reason="needs the extra `report`")

from cass_scale import records
from cass_scale.charts import Line, _thin
from cass_scale.errors import ConfigError, DataError, MissingExtra
from cass_scale.evaluation.summary import Scoring, summary
from cass_scale.page import report
from cass_scale.results import load, tables
from tests.evaluation.test_comparison import said
from tests.fake_runs import ARMS, DATA, Page, add_run, add_scores, demo, page_of, scores, squeezed


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return demo(tmp_path / "runs")


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    return page_of(demo(tmp_path_factory.mktemp("demo") / "runs"))


def test_collapse_is_said_first_with_arm_and_step_and_points_to_the_contrast_run(
    demo_page: tuple[Page, str],
) -> None:
    page, html = demo_page
    text = squeezed(page)
    assert "Run cass collapsed: vit at step 30, cnn at step 50" in text
    assert "The published objective collapsed: its encoders carry little about the image; see the contrast run" in text
    assert html.index('class="banner"') < html.index("<h2>")
    assert html.count('role="alert"') == 1


def test_scores_stand_beside_their_null_control_and_the_untrained_weights(
    demo_page: tuple[Page, str],
) -> None:
    table = scores(demo_page[0])
    assert table[1] == ["cnn"]
    assert table[2][0] == "cass cass, collapsed"
    assert table[2][1] == "0.722 [0.687, 0.757] \N{MINUS SIGN}0.103"
    assert [row[0] for row in table[3:7]] == [
        "cass_contrast contrast",
        "null control null",
        "initial weights, untouched",
        "random weights, untrained",
    ]
    assert table[4][1] == "0.825 [0.790, 0.860]"  # no difference of the control to itself
    assert table[3][1] == "0.860 [0.825, 0.895] +0.035, noise"


def test_no_winner_within_noise_is_bold(demo_page: tuple[Page, str]) -> None:
    page, html = demo_page
    bold = re.findall(r'class="number best">([0-9.]+)', html)
    assert bold == [
        "0.950",
        "0.951",
    ]  # vit; cnn leads by .010, AUC by .040: not by twice .035
    assert "is noise, and no score is bold, unless the intervals of the two lie apart" in squeezed(page)
    assert "cnn 0.860 (+0.035, within noise)" in squeezed(page)


def test_unfinished_runs_are_listed_but_never_scored(demo_page: tuple[Page, str]) -> None:
    page, html = demo_page
    assert "0.999" not in html
    listed = next(table for table in page.tables if "Last logged step " in table[0])
    assert [cell.strip() for cell in listed[1][:3]] == ["stopped cass", "preempted", "120"]
    assert listed[1][-1].strip() == "SIGTERM"
    assert all("stopped" not in row[0] for row in page.tables[0])


def test_intervals_are_shown_and_a_winner_needs_them_apart(tmp_path: Path) -> None:
    def arms(score: float, low: float, high: float) -> dict[str, Any]:
        row = dict.fromkeys(("macro_f1", "balanced_accuracy", "auc"), score)
        return {"cnn": row | {"intervals": {"macro_f1": [low, high], "auc": [score - 0.01, score + 0.01]}}}

    runs = tmp_path / "runs"
    for name, method, row in (("a", "cass_contrast", arms(0.9, 0.7, 0.95)), ("n", "cass_null", arms(0.6, 0.5, 0.75))):
        add_scores(add_run(runs, name, method), {}, arms=row)
    page, html = page_of(runs)
    table = scores(page)
    assert table[2][1] == "0.900 [0.700, 0.950] +0.300, noise", "[.7, .95], [.5, .75]"
    assert table[2][2] == "0.900 +0.300, noise", "without an interval nobody knows"
    assert re.findall(r'class="number best">([0-9.]+)', html) == ["0.900"] and table[2][3].endswith("+0.300")


def test_what_few_patients_say_is_noise_where_single_images_would_say_more(tmp_path: Path) -> None:
    """The same answers to the same 400 images, once of 400 patients and once of 4."""
    verdicts, easy = {}, said(1.9, n=400)
    order = np.argsort(easy.probability["cnn"][0, np.arange(400), easy.label])  # some patients are harder than others
    for patients in (400, 4):
        runs = tmp_path / str(patients)
        group = np.empty(400, "<U4")
        group[order] = [f"p{i * patients // 400}" for i in range(400)]
        for name, method, skill in (("a", "cass_contrast", 1.9), ("n", "cass_null", 1.3)):
            arm = summary(said(skill, n=400, group=group), "cnn", Scoring())
            add_scores(add_run(runs, name, method), {}, arms={"cnn": arm}, n_test=400)
        (table,) = tables(load(runs)[0])
        verdicts[patients] = next(row for row in table.rows if row.kind == "run").cells["macro_f1"].verdict
    assert verdicts == {400: "above", 4: "within noise"}


def test_amounts_of_labels_have_tables_of_their_own_and_undefined_scores_say_why(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = add_run(runs, "a", "cass_contrast")
    row = {"macro_f1": 0.8, "balanced_accuracy": 0.8, "auc": None, "undefined": {"auc": "all of one class"}}
    more = {"protocol": "finetune", "arms": {"cnn": row}, "trainings": [0, 1, 2, 3, 4]}
    add_scores(run, {}, labels=0.1, **more)
    (run / "evaluate/finetune-run.json").rename(run / "evaluate/finetune-run-labels0.1.json")
    add_scores(run, {}, labels=1.0, **more)
    page, html = page_of(runs)
    text = squeezed(page)
    assert "Fine-tuning, end to end, brain_mri, 10 % of the labels, 5 seeds" in text
    assert "Fine-tuning, end to end, brain_mri, 5 seeds" in text and "5 trainings, of which the means are shown" in text
    assert scores(page)[2][3] == "n/a" and 'title="all of one class"' in html


def test_null_control_of_another_seed_is_not_used(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    add_scores(add_run(runs, "a", "cass_contrast"), {"cnn": (0.8, 0.8, 0.8)})
    add_scores(add_run(runs, "n", "cass_null", seed=1), {"cnn": (0.1, 0.1, 0.1)})
    page, html = page_of(runs)
    assert "+0.700" not in html
    assert "No null control for a, cnn" in squeezed(page)
    assert len([t for t in page.tables if t[0][0].strip() == "Encoder"]) == 2


def test_a_run_of_one_arm_stands_beside_those_that_trained_it_with_another(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    add_scores(add_run(runs, "a", "dino", arms={"vit": ARMS["vit"]}, flops_per_image=434e9), {"vit": (0.8, 0.8, 0.8)})
    add_scores(add_run(runs, "b", "dino", arms={"vit": {"model": "other"}}), {"vit": (0.7, 0.7, 0.7)})
    add_scores(add_run(runs, "n", "cass_null"), {"cnn": (0.1, 0.1, 0.1), "vit": (0.3, 0.3, 0.3)})
    page, html = page_of(runs)
    assert "+0.500" in html and "+0.400" not in html
    assert "No null control for b, vit" in squeezed(page) and "No null control for a" not in squeezed(page)
    assert "434 GFLOP each" in squeezed(page)


def test_each_run_tells_how_to_repeat_it(demo_page: tuple[Page, str]) -> None:
    page, html = demo_page
    text = squeezed(page)
    for wanted in (
        "method=cass_contrast data.path",
        "_target_: cass_scale.methods.cass_null",
        "9f2c41d07b3e5a68",
    ):
        assert wanted in text
    assert ("3f1c" * 10) + " , with uncommitted changes" in text.replace("3f1c, ", "3f1c , ")
    assert text.count("uncommitted code") == 1  # in the row of the table
    assert "1 unusable file, skipped" in text and "truncated after 120 of 4,096 bytes" in text
    assert "Step 30, vit: cosine between different images 1.000, at the start 0.991" in text
    assert html.count("data:image/png;base64,") == 1 and "Sample views of cass, contrast." in text
    assert '"python"' in text and "torch 2.13.0" in text


def test_summary_gives_cost_speed_and_waiting(demo_page: tuple[Page, str]) -> None:
    row = next(row for row in demo_page[0].tables[0] if row[0].split() == ["cass", "cass"])
    cells = [" ".join(cell.split()) for cell in row]
    assert cells[1] == "yes"
    costs = ["6 400", "400", "3.5 min", "3.5 min 3.2 min training", "31.0", "5.8 %", "1.35 GiB", "done"]
    assert cells[4:] == costs


def test_synthetic_and_noise_data_are_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = {"name": "phantom", "synthetic": True}
    phantom = add_run(runs, "p", "cass", data=DATA | made)
    add_scores(phantom, {"cnn": (0.5, 0.5, 0.5)}, data=made, warnings=["the solver did not converge"])
    add_run(runs, "z", "cass_contrast", data=DATA | {"noise": True})
    text = squeezed(page_of(runs)[0])
    assert "synthetic phantom data: says nothing about medicine" in text
    assert "k-nearest neighbours, phantom (synthetic)" in text
    assert "p, while scoring: the solver did not converge" in text
    assert "z was trained on Gaussian noise images" in text


def test_the_page_loads_nothing_and_runs_nothing(demo_page: tuple[Page, str]) -> None:
    page, html = demo_page
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object") or attributes.get("href") == "data:,"
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)|https?://", html)


def test_names_of_others_cannot_run(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    runs = tmp_path / "runs"
    folder = add_run(
        runs, "x<img src=x onerror=y>", evil, command=evil, arms={evil: {"model": evil, "weights": evil}},
        data=DATA | {"name": evil, "classes": [evil], "bad": [{"key": evil, "why": evil}]}, error=evil,
        collapse=[{"step": 1, "arm": evil, "why": evil}],
    )  # fmt: skip
    add_scores(folder, {evil: (0.5, 0.5, 0.5)}, data={"name": evil, "fingerprint": evil}, protocol="knn")
    records.MetricsLog(folder / "metrics.jsonl").append({"step": 500, "probe/<b>$/between_cosine": 0.5})
    page, _ = page_of(runs)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "b"}
    assert 'alert("1")' in page.text


def test_a_damaged_record_is_named_and_the_rest_shown(runs: Path) -> None:
    (runs / "null" / "run.json").write_text('{"schema": 1, "sta')
    (runs / "cass" / "evaluate" / "knn-run.json").write_text("{}")
    (runs / "contrast" / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    text = squeezed(page_of(runs)[0])
    assert re.search(r"Left out: \S+null/run.json cannot be read as JSON", text)
    assert re.search(r"contrast/metrics.jsonl, line 1 is damaged", text)
    assert "knn-run.json has no schema number" in text
    assert "No null control for contrast, vit" in text


def test_a_run_that_failed_at_once_has_half_a_record(tmp_path: Path) -> None:
    records.create(tmp_path / "runs" / "early", {"status": "failed", "error": "no space left", "method": "cass"})
    page, _ = page_of(tmp_path / "runs")
    assert "no space left" in page.text and "No run has finished." in page.text


def test_losses_that_are_not_numbers_leave_gaps(tmp_path: Path) -> None:
    folder = add_run(tmp_path / "runs", "diverged", "cass_contrast")
    log = records.MetricsLog(folder / "metrics.jsonl")
    for step in range(410, 2000):
        log.append({"step": step, "loss": float("nan")})
    page, html = page_of(tmp_path / "runs")
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "nan" not in drawn.lower()
    assert sum(tag == "svg" for tag, _ in page.tags) > 5


def test_long_curves_keep_their_spikes_and_stay_small(tmp_path: Path) -> None:
    y = [1.0] * 50_000
    y[12_345] = 9.0
    x, thin = _thin(Line("loss", range(50_000), y))
    assert len(thin) < 1_300 and 9.0 in thin and 12_345 in x and x == sorted(x)


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no run.json under .*; run `cass-scale pretrain` first"):
        report(tmp_path, tmp_path / "report.html")
    run = add_run(tmp_path / "runs", "future", "cass")
    with pytest.raises(ConfigError, match=r"out=.* cannot be written \(.*\); name a file"):
        report(tmp_path / "runs", run)
    records.update(run, schema=2)
    with pytest.raises(DataError, match=r"run.json has schema 2; this cass-scale reads schema 1 to 1: `pip install"):
        report(tmp_path / "runs", tmp_path / "report.html")
    (run / "run.json").write_text("[]")
    with pytest.raises(DataError, match=r"no readable run.json under .*future/run.json holds a list"):
        report(tmp_path / "runs", tmp_path / "report.html")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package {package}: `pip install 'cass-scale\[report\]'`"):
        report(runs, runs.parent / "report.html")


def test_no_torch(runs: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cass_scale.page import report\n"
        f"report(Path({str(runs)!r}), Path({str(runs.parent / 'report.html')!r}))\n"
        "assert not {'torch', 'hydra', 'matplotlib.pyplot'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
