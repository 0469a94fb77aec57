"""What a person can meet: each error says what failed, which key or file, and what would work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cass_scale.words import redact

EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_DATA, EXIT_PREEMPTED = (
    0,
    1,
    2,
    3,
    75,
)  # 75 is EX_TEMPFAIL: a scheduler may requeue
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class CassScaleError(Exception):
    """Base of all errors that are printed without a traceback; `exit_code` is the process's."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))  # here, so that no log and no record ever holds a password or token


class ConfigError(CassScaleError):
    """One or more problems of the configuration, found before any device is touched."""

    exit_code = EXIT_CONFIG

    def __init__(self, *problems: str) -> None:
        self.problems = [redact(problem) for problem in problems]
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{head} in the configuration:", *(f"  - {p}" for p in self.problems)]))


class DataError(CassScaleError):
    """The data cannot be used: names the file or folder and what would work."""

    exit_code = EXIT_DATA


class StorageError(CassScaleError):
    """A file of the run could not be written; what was there before is whole."""


class NonFinite(CassScaleError):
    """The loss is NaN or infinite; the last checkpoint is from before."""


class TooLarge(CassScaleError):
    """The device's memory is too small for the batch; the message names the largest that fits."""


class Preempted(CassScaleError):
    """The run was asked to stop and has saved; the same command continues it."""

    exit_code = EXIT_PREEMPTED


class RankLost(CassScaleError):
    """Another rank failed, died or was cut off, or no step came to its end; says which, and why."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # that of the rank that failed


class Collapsed(CassScaleError):
    """`train.on_collapse=stop` met a collapse; the run's record holds the evidence."""


SYSTEM_PACKAGES = {"ffcv": "libopencv-dev libturbojpeg0-dev pkg-config"}  # Debian's, by the extra that needs them


class MissingExtra(ConfigError):
    """An optional package is not installed: names the extra, the pip line and the system packages."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        first = f" (first `apt-get install {SYSTEM_PACKAGES[extra]}`)" if extra in SYSTEM_PACKAGES else ""
        super().__init__(f"{needed_for} needs the package {package}: `pip install 'cass-scale[{extra}]'`{first}")


class Problems:
    """Collects configuration problems so that all of them are reported together."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def check(self, good: bool, message: str) -> None:
        """Note `message` unless `good`."""
        if not good:
            self.found.append(message)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Note what a ConfigError raised inside says, and go on behind it."""
        try:
            yield
        except ConfigError as error:
            self.found += error.problems

    def raise_if_any(self) -> None:
        """Raise one ConfigError with everything found so far."""
        if self.found:
            raise ConfigError(*self.found)
