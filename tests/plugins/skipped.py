"""At the end of a run: every skipped test by name, and why, so that nothing is left out in silence."""

from __future__ import annotations

import pytest


def reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why it was skipped, without pytest's prefix."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return text.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add the section SKIPPED; nothing where nothing was skipped."""
    reports = terminalreporter.getreports("skipped")
    if not reports:
        return
    terminalreporter.section("SKIPPED")
    for report in reports:
        terminalreporter.line(f"{report.nodeid}: {reason(report)}")
