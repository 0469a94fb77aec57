"""What a rank holds under every backend, from the paper's arms to a billion parameters: when sharding is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cass_scale.estimate import Estimate, held
from cass_scale.types import JSON

GIB = 2**30
WORTH = 0.1  # of the card's memory
BACKENDS = {"ddp": "single, DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}


def memory_rows(options: JSON, count: Callable[[list[str]], Estimate]) -> JSON:
    """Bytes per rank for every choice of arms, counted on the meta device and divided by formula."""
    rows = {}
    for name, words in options["arms"].items():
        cost = count(words)
        frozen = cost.parameters - cost.trained
        rows[name] = {
            "trained": cost.trained,
            "frozen": frozen,
            "activations": cost.activation_bytes,
            "held": {backend: held(cost.trained, frozen, backend, options["ranks"]) for backend in BACKENDS},
        }
    return {"ranks": options["ranks"], "batch": options["batch"], "gib": options["gib"], "rows": rows}


def saved(row: JSON) -> float:
    """Bytes per rank that ZeRO-2 frees beside DDP."""
    return float(sum(row["held"]["ddp"].values()) - sum(row["held"]["zero2"].values()))


def memory_table(memory: JSON) -> str:
    """Markdown: a row per choice of arms, and what the figures say about ZeRO."""
    head = ["parameters, M", "weights", "gradients", "Adam", "teacher", *BACKENDS.values()]
    lines = [
        f"GiB per rank, {memory['ranks']} ranks, float32 with autocast; activations of {memory['batch']} images, bf16.",
        "",
        f"| arms | {' | '.join(head)} | activations | ZeRO-2 frees |",
        f"|---|{'---:|' * (len(head) + 2)}",
        *(_line(name, row, memory) for name, row in memory["rows"].items()),
    ]
    return "\n".join([*lines, "", _verdict(memory), *_counted(memory)])


def _line(name: str, row: JSON, memory: JSON) -> str:
    kinds = [row["held"]["ddp"][kind] for kind in ("weights", "gradients", "moments", "teacher")]
    sums = [sum(row["held"][backend].values()) for backend in BACKENDS]
    share = saved(row) / (memory["gib"] * GIB)
    images = saved(row) / (row["activations"] / memory["batch"])
    cells = [f"{(row['trained'] + row['frozen']) / 1e6:,.0f}", *(f"{size / GIB:.2f}" for size in (*kinds, *sums))]
    freed = f"{100 * share:.1f} % of {memory['gib']:g} GiB, {images:.0f} images"
    return f"| {name} | {' | '.join(cells)} | {row['activations'] / GIB:.1f} | {freed} |"


def _verdict(memory: JSON) -> str:
    rows = memory["rows"].items()
    worth = [name for name, row in rows if saved(row) >= WORTH * memory["gib"] * GIB]
    rule = f"ZeRO is worth it where ZeRO-2 frees {100 * WORTH:.0f} % of the card or more"
    return f"{rule}: {_listed(worth)}. Below that DDP is as good, and simpler."


def _counted(memory: JSON) -> list[str]:
    """The formula beside the tensors of a rank that was measured."""
    if "counted" not in memory:
        return []
    parts = [
        f"{size / 2**20:.1f}{' MiB' if kind == 'weights' else ''} of {kind} ({memory['by_formula'][kind] / 2**20:.1f})"
        for kind, size in memory["counted"].items()
    ]
    return [f"Counted tensor by tensor, a rank measured here holds {', '.join(parts)}; in brackets by formula."]


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names) if names else "none of these"
