"""What a command leaves of the signal handlers: nothing in a process that goes on, deafness in one that ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from cass_scale.cli import main, program
from cass_scale.signals import ENDING

WORDS = ["report", "runs=a", "out=b", "--dry-run"]


@pytest.fixture
def handlers() -> Iterator[list[object]]:
    before = {number: signal.getsignal(number) for number in ENDING}
    yield list(before.values())
    for number, handler in before.items():
        signal.signal(number, handler)


def now() -> list[object]:
    return [signal.getsignal(number) for number in ENDING]


def test_main_puts_the_handlers_back(handlers: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(WORDS) == 0 and now() == handlers
    monkeypatch.setattr(sys, "argv", ["cass-scale", *WORDS])
    assert main() == 0 and now() == handlers


def test_a_program_that_ends_hears_nothing_more(handlers: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cass-scale", *WORDS])
    assert program() == 0 and now() == [signal.SIG_IGN] * 2
