"""The figures of `bench name=scaling` as tables: measured, model, prediction, parameters, memory."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from cass_scale.measure.memory_table import memory_table
from cass_scale.measure.predict import ENOUGH, GB, MIB, MS, SIZES, US
from cass_scale.measure.turns import spread
from cass_scale.types import JSON


def table(figures: JSON) -> str:
    """All of the page, as markdown."""
    parts = [measured(figures), traffic(figures)]
    if "fit" in figures:
        parts += [latencies(figures), model(figures)]
    return "\n\n".join([*parts, prediction(figures), constants(figures), memory_table(figures["memory"])])


def _rows(head: str, rows: Sequence[Sequence[str]]) -> str:
    columns = head.split(" | ")
    rule = "|" + "|".join(["---", *["---:"] * (len(columns) - 1)]) + "|"
    return "\n".join([f"| {head} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _seconds(figures: JSON, name: str, kind: str) -> list[float]:
    return [seconds for result in figures["sides"][name] for seconds in result["steps"][kind]]


def measured(figures: JSON) -> str:
    """Steps and images per second of both series; efficiency against one rank with the same batch, or the same work."""
    rows = []
    for name in sorted(figures["sides"], key=lambda name: (-int(name.split("x")[1]), int(name.split("x")[0]))):
        ranks, batch = map(int, name.split("x"))
        rates = [1 / seconds for seconds in _seconds(figures, name, "exchanged")]
        whole = f"1x{ranks * batch}"
        weak, strong = (_share(figures, name, base, ranks) for base in (f"1x{batch}", whole))
        alone = f"{median(_seconds(figures, name, 'alone')) / MS:.0f}" if ranks > 1 else ""
        images = f"{ranks * batch * median(rates):.1f}"
        rows.append([str(ranks), str(batch), spread(rates, 2), images, weak, strong, alone])
    head = (
        "ranks | batch per rank | steps/s, median (range) | images/s | efficiency, fixed batch per rank "
        "| efficiency, fixed global batch | without exchange, ms"
    )
    cores = "; ".join([figures["device"], f"precision {next(iter(figures['sides'].values()))[0]['precision']}"])
    return f"{cores}. On a CPU every rank has as many cores, also one alone.\n\n{_rows(head, rows)}"


def _share(figures: JSON, name: str, base: str, ranks: int) -> str:
    """Rank-seconds of an image on one rank as a share of those on several."""
    if ranks == 1 or base not in figures["sides"]:
        return ""
    alone, ours = (median(_seconds(figures, one, "exchanged")) for one in (base, name))
    images = int(name.split("x")[1]) / int(base.split("x")[1])
    return f"{100 * alone * images / ours:.0f} %"


def traffic(figures: JSON) -> str:
    """What one rank brings to a step, by kind, and how early gradients leave."""
    most = max(figures["ranks"])
    result = figures["sides"][f"{most}x{figures['batch']}"][0]
    if not result["sent"]:
        return "One rank sends nothing."
    kinds: dict[str, list[int]] = {}
    for what, size, dtype, _ in result["sent"]:
        kinds.setdefault(f"{what} of {dtype}", []).append(size)
    parts = [f"{len(sizes)} x {kind}, {sum(sizes) / MIB:.2f} MiB" for kind, sizes in kinds.items()]
    whole = result["operations"]
    gradients = [f"{100 * after / whole:.0f}" for after in leaving(result["sent"])]
    early = f"Gradients leave after {', '.join(gradients)} % of the step's {whole:,} operations."
    profiled = "" if result["hidden"] is None else f" {100 * result['hidden']:.0f} % of NCCL's time hides (profile)."
    return f"A step of one of {most} ranks brings: {'; '.join(parts)}. {early}{profiled}"


def leaving(sent: Sequence[Sequence[Any]]) -> list[int]:
    """Operations before each all-reduce of gradients: those of the objective's gatherings come first."""
    gathers = sum(what == "all_gather" for what, *_ in sent)
    return [after for what, _, _, after in sent if what == "all_reduce"][gathers:]


def latencies(figures: JSON) -> str:
    """All-reduces by size, and the alpha and beta behind them."""
    most, found = max(figures["ranks"]), figures["fit"]
    results, rows = figures["sides"][f"{most}x{figures['batch']}"], []
    for size in results[0]["latencies"]:
        times = [seconds / MS for result in results for seconds in result["latencies"][size]]
        bus = 2 * (most - 1) / most * int(size) / (median(times) * MS) / GB
        rows.append([f"{int(size):,}", spread(times, 2), f"{bus:.2f}"])
    alpha, beta = found["link"]["alpha"] / US, found["link"]["beta"] / GB
    text = (
        f"alpha {alpha:.0f} µs ({found['alpha'][0] / US:.0f} to {found['alpha'][1] / US:.0f}), beta {beta:.2f} GB/s "
        f"({found['beta'][0] / GB:.2f} to {found['beta'][1] / GB:.2f}), 95 % intervals; at a measured size the curve "
        f"is off by {100 * found['worst']:.0f} % at most."
    )
    return f"{_rows(f'all-reduce on {most} ranks, bytes | ms, median (range) | bus bandwidth, GB/s', rows)}\n\n{text}"


def model(figures: JSON) -> str:
    """Predicted beside measured."""
    rows = [
        [
            *name.split("x"),
            *(f"{row[key] / MS:.1f}" for key in ("exchange", "blocking", "unhidden", "excess")),
            *(f"{row[key] / MS:.0f}" for key in ("predicted", "measured")),
            *(f"{100 * row[key]:+.0f} %" for key in ("error", "error_of_exchange")),
        ]
        for name, row in figures["model"]["rows"].items()
    ]
    head = (
        "ranks | batch per rank | exchange, model, ms | blocking, model, ms | exchange not hidden, model, ms "
        "| the same, measured, ms | step, predicted, ms | step, measured, ms | error "
        "| error beside these ranks' own computing"
    )
    overlap = f"Overlap {figures['model']['overlap']:.2f}, from the first row; computing is that of one rank alone."
    return f"{_rows(head, rows)}\n\n{overlap}"


def prediction(figures: JSON) -> str:
    """Efficiency by number of GPUs and network, then where it falls under ENOUGH and what changes that."""
    rows = []
    for name, one in figures["predicted"].items():
        cells = [f"{100 * one['weak'][n]:.0f} ({100 * one['weak_unhidden'][n]:.0f})" for n in SIZES]
        rows.append([f"{name}, batch per GPU fixed", *cells])
        cells = [f"{100 * one['strong'][n]:.0f}" if n in one["strong"] else "" for n in SIZES]
        rows.append([f"{name}, global batch fixed", *cells])
    head = " | ".join(["predicted efficiency, % (with nothing hidden)", *(f"{n:,} GPUs" for n in SIZES)])
    return "\n\n".join([_rows(head, rows), "\n".join(_advice(name, one) for name, one in figures["predicted"].items())])


def _advice(name: str, one: JSON) -> str:
    if one["under"] is None:
        return f"* {name}: {100 * ENOUGH:.0f} % or more up to {SIZES[-1]:,} GPUs at a fixed batch per GPU."
    levers = sorted(one["levers"].items(), key=lambda item: -item[1]["there"])
    told = [f"{lever} {100 * change['there']:.0f} % ({_until(change['under'])})" for lever, change in levers]
    there = f"{100 * one['there']:.0f} %"
    return f"* {name}: under {100 * ENOUGH:.0f} % from {one['under']:,} GPUs on ({there}). There, {'; '.join(told)}."


def _until(under: int | None) -> str:
    return f"enough up to {SIZES[-1]:,}" if under is None else f"under it from {under:,} on"


def constants(figures: JSON) -> str:
    """Every number of the prediction with its origin."""
    known = figures["parameters"].items()
    rows = [
        [key if one["origin"] == "counted" else f"`bench.predict.{key}`", _text(one["value"]), one["origin"]]
        for key, one in known
    ]
    for name, keys in figures["networks"].items():
        rows.append([f"`bench.predict.between.{name}`", f"{keys['alpha_us']:g} µs, {keys['beta_gbs']:g} GB/s", "given"])
    return _rows("parameter of the prediction | value | origin", rows)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else f"{value:,}"
