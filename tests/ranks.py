"""Run by the real launchers on every rank: one `pretrain` after another, and what each rank then holds."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from cass_scale import dist, pretrain
from cass_scale.backends.engine import Engine, local
from cass_scale.verbs import spread


def main(jobs: Path) -> None:
    engines: list[Engine] = []
    start = spread.start

    def noted(*parts: Any) -> Engine:
        engines.append(start(*parts))
        return engines[-1]

    spread.start = noted
    for name, words in json.loads(jobs.read_text()).items():
        pretrain(*words, quiet=True)
        found = {"world": dist.world(), **held(engines.pop())}
        (jobs.parent / f"{name}.{dist.rank()}.json").write_text(json.dumps(found))


def held(engine: Engine) -> dict[str, Any]:
    """How much this rank stores, and a digest of what must be equal on all ranks where all hold it."""
    stored = [local(p) for p in engine._stored()]
    state = [local(x) for one in engine.optimizer.state.values() for x in one.values() if x.ndim]
    return {
        "weights": numel(stored),
        "state": numel(state),
        "digest": digest([*engine.method.parameters()]) if numel(stored) == whole(engine) else "",
        "buffers": digest([x for x in engine.method.buffers() if x.is_floating_point()]),
        "dtypes": sorted({str(x.dtype) for x in [*stored, *state, *engine.method.buffers()]}),
    }


def whole(engine: Engine) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) for p in engine.method.parameters())


def numel(tensors: list[Tensor]) -> int:
    return sum(x.numel() for x in tensors)


def digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for x in tensors:
        found.update(local(x.detach()).cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
