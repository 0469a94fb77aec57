"""One row of a study in a process of its own: its verbs one after the other, so that torch is loaded once.

python -m cass_scale.verbs.row '[["pretrain", "method=cass", ...], ["evaluate", ...]]'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from cass_scale.cli import main
from cass_scale.errors import EXIT_OK


def run(commands: Sequence[Sequence[str]]) -> int:
    """The first exit code that is not 0, else 0."""
    for words in commands:
        if code := main(words):
            return code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
