"""The figures of `bench name=step` as a table, and as the CSV that timm's users know."""

from __future__ import annotations

import csv
import io
from statistics import median

from cass_scale import published
from cass_scale.hardware import Limits
from cass_scale.measure.turns import failed, spread, told
from cass_scale.page import hours
from cass_scale.types import JSON
from cass_scale.verbs.emulation import predicted

COLUMNS = (
    "model", "variant", "train_samples_per_sec", "train_step_time", "train_batch_size", "train_img_size",
    "param_count", "precision", "gflop_per_sample", "mfu_datasheet", "mfu_measured", "peak_memory_gib",
    "joule_per_sample", "data_wait",
)  # fmt: skip
FEW = "\\*"  # an asterisk that markdown leaves alone
ENOUGH = 20  # timed steps of a row, else it is marked
OVER = (
    ", over data.path"  # end of the name of a side whose images come from a stream; those of others lie on the device
)


def rows(figures: JSON) -> list[JSON]:
    """One per side that ran, with COLUMNS: step time in ms, parameters in millions, medians over all turns' steps."""
    found = []
    for key, results in figures["sides"].items():
        if failed(results):
            continue
        one, times = results[0], [seconds for result in results for seconds in result["times"]]
        rate = one["batch"] / median(times)
        flops = rate * one["flops_per_image"]
        joules = [r["joules"] / (len(r["times"]) * r["batch"]) for r in results if r["joules"] is not None]
        waits = [r["spans"]["data"] / sum(r["times"]) for r in results] if OVER in key else []
        values = (
            "+".join(one["models"]), key.rpartition("/")[0], rate, 1e3 * median(times), one["batch"], one["image_size"],
            one["parameters"] / 1e6, one["precision"], one["flops_per_image"] / 1e9,
            _share(flops, figures["peaks"]["datasheet"].get(one["precision"])),
            _share(flops, figures["peaks"]["matrix_product"].get(one["precision"])),
            max(r["peak_memory"] for r in results) / 2**30,
            median(joules) if joules else None, median(waits) if waits else None,
        )  # fmt: skip
        found.append(dict(zip(COLUMNS, values, strict=True)) | {"times": times, "warmup": one["warmup"]})
    return found


def _share(flops: float, peak: float | None) -> float | None:
    return flops / peak if peak else None


def table(figures: JSON) -> str:
    """Markdown: a row per side, then what the device could do at most."""
    lines = [
        "| variant | batch | precision | images/s, median (range of steps) | steps | MFU, datasheet "
        "| MFU, measured peak | waiting for data | peak memory, GiB | J per image | warm-up, s |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    found = rows(figures)
    for row in found:
        rates = [row["train_batch_size"] / seconds for seconds in row["times"]]
        cells = [
            row["variant"],
            str(row["train_batch_size"]),
            row["precision"],
            spread(rates, 2 if max(rates) < 100 else 0),
            f"{len(rates)}{FEW if _few(row) else ''}",
            _percent(row["mfu_datasheet"]),
            _percent(row["mfu_measured"]),
            "" if row["data_wait"] is None else f"{100 * row['data_wait']:.1f} %",
            f"{row['peak_memory_gib']:.1f}",
            f"{row['joule_per_sample']:.2f}" if row["joule_per_sample"] is not None else "n/a",
            f"{row['warmup']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for key, results in figures["sides"].items():
        if why := told(results):
            lines.append(f"| {key.replace('/', ' | ')} | {why} | | | | | | | | |")
    few = ["", f"{FEW} fewer than {ENOUGH} timed steps: an indication only."] if any(map(_few, found)) else []
    return "\n".join([*lines, *few, "", _peaks(figures["peaks"]), *_fit(figures.get("fit")), *_predicted(figures)])


def _few(row: JSON) -> bool:
    return len(row["times"]) < ENOUGH


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.0f} %"


def _peaks(peaks: JSON) -> str:
    products = ", ".join(f"{name} {value / 1e12:.2f}" for name, value in peaks["matrix_product"].items())
    source = f"datasheet: {peaks['source']}" if peaks["source"] else "not in the table of datasheets"
    what = f"{products} TFLOP/s in a large matrix product, {peaks['copy'] / 1e9:.0f} GB/s in a copy"
    return f"{peaks['name']} ({source}): {what}."


def _fit(fit: JSON | None) -> list[str]:
    if fit is None:
        return []
    found = [
        f"{name} {told(results) or '{batch} ({how})'.format(**results[0])}" for name, results in fit["sides"].items()
    ]
    return ["", f"Largest batch in {fit['memory_gib']:.4g} GiB: {', '.join(found)}."]


def predictions(limits: Limits, figures: JSON) -> list[JSON]:
    """What each side would do on the card whose limits were held, where the peak here was measured in its precision."""
    found = []
    for row in rows(figures):
        name, flops = row["precision"], 1e9 * row["gflop_per_sample"]
        peak = figures["peaks"]["matrix_product"].get(name)
        if peak and (one := predicted(limits, name, flops, row["train_samples_per_sec"], peak)):
            found.append({"variant": row["variant"], "batch": row["train_batch_size"], **one})
    return found


def _predicted(figures: JSON) -> list[str]:
    """Markdown of the predictions, with Table 2 below them."""
    found = figures.get("predicted")
    if not found or not found["rows"]:
        return []
    low, high = (round(100 * share) for share in found["rows"][0]["sustained"])
    table2 = published.hours()
    lines = [
        "",
        f"**Prediction, not measurement**: hours of 100 epochs on a {found['card']}, used as well as "
        f"{figures['peaks']['name']} was here, if it sustains {low} to {high} % of its datasheet in a large product.",
        *([f"Not the paper's setting: {'; '.join(found['differs'])}."] if found["differs"] else []),
        "",
        f"| variant | batch | precision | of the measured peak | images/s | {' | '.join(table2)} |",
        f"|---|---:|---|---:|---:|{'---:|' * len(table2)}",
    ]
    for row in found["rows"]:
        rates = " to ".join(f"{rate:,.0f}" for rate in reversed(row["images_per_s"]))
        times = [" to ".join(map(hours, row["hours"][name])) for name in table2]
        cells = [row["variant"], str(row["batch"]), row["precision"], _percent(row["efficiency"]), rates, *times]
        lines.append(f"| {' | '.join(cells)} |")
    for number, who in ((1, "Table 2, CASS"), (0, "Table 2, the pair of DINO")):
        lines.append(f"| {who} | 16 | | | | {' | '.join(hours(both[number]) for both in table2.values())} |")
    return lines


def as_csv(figures: JSON) -> str:
    """One line per side that ran."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(figures))
    return out.getvalue()
