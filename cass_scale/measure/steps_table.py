"""The figures of `bench name=step` as a table, and as the CSV that timm's users know."""

from __future__ import annotations

import csv
import io
from statistics import median

from cass_scale.measure.turns import failed, spread
from cass_scale.types import JSON

COLUMNS = (
    "model", "variant", "train_samples_per_sec", "train_step_time", "train_batch_size", "train_img_size",
    "param_count", "precision", "gflop_per_sample", "mfu_datasheet", "mfu_measured", "peak_memory_gib",
    "joule_per_sample", "data_wait",
)  # fmt: skip
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
    for row in rows(figures):
        rates = [row["train_batch_size"] / seconds for seconds in row["times"]]
        cells = [
            row["variant"],
            str(row["train_batch_size"]),
            row["precision"],
            spread(rates, 2 if max(rates) < 100 else 0),
            str(len(rates)),
            _percent(row["mfu_datasheet"]),
            _percent(row["mfu_measured"]),
            "" if row["data_wait"] is None else f"{100 * row['data_wait']:.1f} %",
            f"{row['peak_memory_gib']:.1f}",
            f"{row['joule_per_sample']:.2f}" if row["joule_per_sample"] is not None else "n/a",
            f"{row['warmup']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for key, results in figures["sides"].items():
        if why := failed(results):
            lines.append(f"| {key.replace('/', ' | ')} | failed: {why.replace('|', '/')} | | | | | | | | |")
    return "\n".join([*lines, "", _peaks(figures["peaks"]), *_fit(figures.get("fit"))])


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
        f"{name} {failed(results) or '{batch} ({how})'.format(**results[0])}" for name, results in fit["sides"].items()
    ]
    return ["", f"Largest batch in {fit['memory_gib']} GiB: {', '.join(found)}."]


def as_csv(figures: JSON) -> str:
    """One line per side that ran."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(figures))
    return out.getvalue()
