"""Run by the real launchers on every rank: one `pretrain` after another in one process, as the words on its line say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cass_scale import pretrain
from cass_scale.errors import CassScaleError


def main(jobs: Path) -> None:
    for name, words in json.loads(jobs.read_text()).items():
        print("job", name, flush=True)
        pretrain(*words, quiet=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
