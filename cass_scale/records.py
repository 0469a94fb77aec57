"""What a run leaves behind: run.json, env.json, metrics.jsonl. Standard library only, no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cass_scale.errors import ConfigError, DataError
from cass_scale.machine import cores
from cass_scale.types import JSON

SCHEMA = 1
RUN, METRICS, ENV, CONFIG = "run.json", "metrics.jsonl", "env.json", "config.yaml"

# Environment variables that change results or speed. An allow-list: anything else may hold a secret.
ENV_ALLOWED = re.compile(
    r"(OMP|MKL)_NUM_THREADS|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER)|CUBLAS_WORKSPACE_CONFIG|NVIDIA_TF32_OVERRIDE"
    r"|PYTORCH_(CUDA_)?ALLOC_CONF|WORLD_SIZE|(GROUP_|LOCAL_|NODE_)?RANK|LOCAL_WORLD_SIZE"
    r"|SLURM_(JOB_ID|NNODES|NTASKS)|ACCELERATE_\w+"
)
SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")


def now() -> str:
    """This moment in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `path`; a reader or a crash sees the old content or the new, never a part. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # os.replace cannot cross disks
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # without it the rename itself may be lost with the power
    except OSError:
        pass  # some network file systems refuse fsync of a folder
    finally:
        os.close(handle)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` of `text` in UTF-8."""
    atomic_write_bytes(path, text.encode())


def write_json(path: Path, value: JSON) -> None:
    """Write indented JSON atomically; NaN and infinities become null, so that every reader can parse it."""
    atomic_write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> JSON:
    """A JSON object from `path`. Raises DataError naming the file when it is absent, cut or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as why:
        raise DataError(f"{path} cannot be read as JSON ({why}); restore it, or remove its folder") from why
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a JSON object; remove its folder")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, os.PathLike) else value


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits that depend on the content only, not on the order of keys or on tuple against list."""
    text = json.dumps(_finite(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of `packages` by distribution name; those not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(path: Path | None = None) -> dict[str, Any]:
    """`{"sha", "dirty"}` of the checkout that tracks the folder `path` (default: this package), else Nones.

    An installed package inside somebody's repository is not tracked there: Nones, not that repository's sha.
    """
    folder = path or Path(__file__).parent
    if not _git(folder, "ls-files", "--", "."):
        return {"sha": None, "dirty": None}
    sha = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    added = _git(folder, "ls-files", "--others", "--exclude-standard", "--", ".")
    return {"sha": sha or None, "dirty": None if not sha or changed is None else bool(changed or added)}


def _git(folder: Path, *arguments: str) -> str | None:
    # GIT_DIR and friends (set inside a git hook) would answer for another repository.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=clean, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository, or not ours to read
    return done.stdout.strip()


def env() -> JSON:
    """Python, platform, cores this process may use, memory, and the listed environment variables."""
    return {
        "schema": SCHEMA,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if _may_record(k)},
    }


def _may_record(name: str) -> bool:
    return bool(ENV_ALLOWED.fullmatch(name)) and not SECRET.search(name)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def create(run_dir: Path, fields: Mapping[str, Any]) -> JSON:
    """Start the record of a run: `fields` over the defaults, written to `run_dir/run.json`.

    Raises ConfigError when the folder already holds a record (resume with `update`) or cannot be written.
    """
    if (run_dir / RUN).exists():
        raise ConfigError(f"run.dir={run_dir} already holds a run; resume it or choose another run.dir")
    defaults = {"schema": SCHEMA, "status": "running", "started": now(), "finished": None}
    record: JSON = defaults | {"collapse": [], "error": None} | dict(fields)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / RUN, record)
    except OSError as why:
        problem = f"run.dir={run_dir} cannot be written ({why.strerror}); choose a writable folder"
        raise ConfigError(problem) from why
    return record


def update(run_dir: Path, **fields: Any) -> JSON:
    """Replace the named top-level fields of the record, atomically, and return it whole."""
    record = read(run_dir) | fields
    write_json(run_dir / RUN, record)
    return record


def read(run_dir: Path) -> JSON:
    """The record of a run. Raises DataError when it is absent, damaged, or of a newer schema."""
    path = run_dir / RUN
    if not path.is_file():
        raise DataError(f"no {RUN} in {run_dir}: not a run folder; run `cass-scale pretrain` first")
    record = read_json(path)
    check_schema(record, path)
    return record


def check_schema(record: JSON, path: Path) -> None:
    """Raise DataError when `record` was written by a newer cass-scale than this one."""
    schema = record.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        newer = f"this cass-scale reads schema 1 to {SCHEMA}: `pip install -U cass-scale`"
        raise DataError(f"{path} has schema {schema!r}; {newer}")


def find_runs(folder: Path) -> list[Path]:
    """Folders at or below `folder` that hold a run.json, sorted; a run is not searched for runs inside it."""
    found = []
    for here, inside, files in os.walk(folder):
        if RUN in files:
            found.append(Path(here))
            inside.clear()
    return sorted(found)


def read_metrics(path: Path) -> list[JSON]:
    """Rows of a metrics.jsonl, [] when there is none; a last line cut by a kill is left out.

    Raises DataError with the line number when a line other than the last is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: list[JSON] = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except ValueError as why:
            if number < len(lines):  # a whole line ends in a newline, so the cut one is the last element
                raise DataError(f"{path}, line {number} is damaged ({why}); remove that line") from why
    return rows


class MetricsLog:
    """Appends rows to metrics.jsonl; each survives a kill of the process as soon as it is written."""

    def __init__(self, path: Path, *, repair: bool = True) -> None:
        self.path = path
        if repair and path.exists() and not path.read_bytes().endswith(b"\n"):
            self._rewrite(read_metrics(path))  # else the next row would be glued to the cut one

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, closed and flushed to the system; NaN and infinities become null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row), allow_nan=False) + "\n")

    def truncate(self, step: int) -> None:
        """Keep the rows with `row["step"] <= step`, atomically: for a resume from that checkpoint."""
        rows = read_metrics(self.path)
        if rows:
            self._rewrite([row for row in rows if row["step"] <= step])

    def _rewrite(self, rows: list[JSON]) -> None:
        atomic_write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
