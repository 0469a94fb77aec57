"""What a person sees: plain lines in a file, a bar in a terminal, warnings always, other ranks never."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console as Rich

from cass_scale import console as module
from cass_scale.console import Console

ROW: dict[str, Any] = {
    "step": 20, "epoch": 2, "loss": 1.23456, "images_per_s": 78.94, "data_wait": 0.126, "device_hours": 0.5,
    "probe/cnn/rankme_features": 31.26, "probe/vit/rankme_features": 9.0, "probe/cnn/output_std": 0.5,
}  # fmt: skip


def without_probe(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("probe/")}


def terminal() -> tuple[Console, io.StringIO]:
    """A console that believes it writes to a wide terminal."""
    console, out = Console(), io.StringIO()
    console.rich = Rich(file=out, force_terminal=True, width=200, highlight=False, emoji=False)
    return console, out


def plain(text: str) -> str:
    """`text` without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_row_is_one_plain_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with (console := Console()).bar(100, 0):
        console.step(20)
        console.row(ROW, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "step 20/100  epoch 2  loss 1.2346  78.9 images/s  data wait 13 %  rank cnn 31.3, vit 9.0  0.5000 device-h\n"
    )


def test_the_last_known_rank_stays_in_rows_that_did_not_measure_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console()
    console.row(without_probe(ROW), 100)
    console.row({"step": 0, "probe/cnn/rankme_features": 12.0}, 100)  # the look before the first step
    console.row(without_probe(ROW), 100)
    first, second = capsys.readouterr().err.splitlines()
    assert "rank" not in first
    assert "rank cnn 12.0" in second


def test_long_lines_and_odd_names_come_out_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"runs/[bold]x[/bold]/:cat:/{'long' * 60}"
    Console().say(text)
    Console().warn(text)
    assert capsys.readouterr().err == f"{text}\n{text}\n"


def test_quiet_keeps_warnings_and_other_ranks_keep_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (Console(quiet=True), Console(main=False)):
        console.say("plain")
        console.row(ROW, 100)
        console.warn("collapse")
    assert capsys.readouterr().err == "collapse\n"


def test_a_terminal_gets_a_bar_with_everything_in_it() -> None:
    console, out = terminal()
    with console.bar(100, 0):
        console.step(20)
        console.row(ROW, 100)
    last = plain(out.getvalue())
    for part in (
        "step 20/100",
        "loss 1.2346",
        "78.9 images/s",
        "data wait 13 %",
        "rank cnn 31.3",
        "0.5000 device-h",
        "0:00:0",
    ):
        assert part in last
    console.row(ROW, 100)  # after the bar, lines again
    assert plain(out.getvalue()).rstrip().endswith("device-h")


def test_the_bar_is_redrawn_rarely_but_ends_where_the_run_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BAR_EVERY", 3600.0)
    console, out = terminal()
    with console.bar(1000, 990):
        assert "step 990/1000" in plain(out.getvalue())
        console.step(991)  # the first is drawn
        drawn = len(out.getvalue())
        for done in range(992, 1001):
            console.step(done)
        assert len(out.getvalue()) == drawn
    assert "step 1000/1000" in plain(out.getvalue())


def test_the_bar_goes_when_the_run_fails() -> None:
    console, out = terminal()
    with pytest.raises(KeyError), console.bar(10, 0):
        raise KeyError
    assert out.getvalue().endswith("\x1b[?25h")  # the cursor is back
    console.step(1)
    assert out.getvalue().endswith("\x1b[?25h")


@pytest.mark.parametrize("keys", [{"quiet": True}, {"main": False}])
def test_no_bar_when_nobody_looks(keys: dict[str, bool]) -> None:
    console, out = Console(**keys), io.StringIO()
    console.rich = Rich(file=out, force_terminal=True)
    with console.bar(10, 0):
        console.step(5)
    assert out.getvalue() == ""
