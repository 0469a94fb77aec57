"""What every key of `cass-scale bench` may be: a table of rules per benchmark."""

from __future__ import annotations

from cass_scale.results import METRICS
from cass_scale.verbs.rules import BOOL, POSITIVE, TEXT, Rule, choice, list_of, number, or_null, some_of, whole

_RECORD: Rule = (TEXT[0], "the folder of a record")
_STEPS: dict[str, Rule] = {  # of benchmarks that time steps
    "bench.arms": TEXT,
    "bench.words": list_of(TEXT),
    "bench.images": or_null(whole(2)),
    "bench.warmup": whole(1),
    "bench.steps": whole(3),
    "bench.seconds": POSITIVE,
    "bench.turns": whole(1),
    "bench.limit": or_null(POSITIVE),
}
BENCH: dict[str, dict[str, Rule]] = {
    "loaders": {
        "bench.images": whole(1),
        "bench.size": whole(16),
        "bench.batch": whole(1),
        "bench.workers": list_of(whole(0)),
        "bench.epochs": whole(1),
        "bench.turns": whole(1),
        "bench.limit": or_null(POSITIVE),
        "bench.only": or_null(list_of(TEXT)),
    },
    "step": {
        **_STEPS,
        "bench.batch_sizes": some_of(whole(2)),
        "bench.variants": (lambda v: isinstance(v, dict) and bool(v), "names with lists of overrides"),
        "bench.memory_gib": or_null(POSITIVE),
        "bench.fit": list_of(TEXT),
        "bench.cuda_only": list_of(TEXT),
        "bench.only": or_null(list_of(TEXT)),
    },
    "scaling": {
        "bench.words": list_of(TEXT),
        "bench.ranks": or_null(list_of(whole(1))),
        "bench.sizes": list_of(whole(4)),
        "bench.predict.card": or_null(TEXT),
        "bench.predict.mfu": or_null(number(0.001, 1)),
        "bench.predict.overlap": or_null(number(0, 1)),
        "bench.predict.comm": choice("fp32", "bf16"),
        "bench.predict.within.alpha_us": or_null(number(0)),
        "bench.predict.between": (
            lambda v: all(number(0)[0](one["alpha_us"]) and POSITIVE[0](one["beta_gbs"]) for one in v.values()),
            "of every network alpha_us of at least 0 and beta_gbs above 0",
        ),
        **dict.fromkeys(("bench.predict.step_ms", "bench.predict.within.beta_gbs"), or_null(POSITIVE)),
        **{f"bench.predict.{key}": whole(1) for key in ("bucket_mb", "accumulate", "gpus_per_node")},
        **{f"bench.{key}": whole(2) for key in ("batch", "warmup", "predict.batch", "predict.global_batch")},
        **{f"bench.{key}": whole(low) for key, low in (("steps", 3), ("turns", 1), ("repeats", 3))},
        **{"bench.memory.ranks": whole(1), "bench.memory.batch": whole(2), "bench.memory.gib": POSITIVE},
    },
    "savings": {
        **_STEPS,
        "bench.methods": some_of(TEXT),
        "bench.recipes": some_of(TEXT),
        "bench.convnets": (lambda v: isinstance(v, dict) and all(map(TEXT[0], v.values())), "recipes with their names"),
        "bench.labelled": list_of(TEXT),
        "bench.batch": whole(2),
        "bench.stay": BOOL,
        "bench.watts": or_null(POSITIVE),
        "bench.price_per_hour": or_null(POSITIVE),
        "bench.grid_kg_per_kwh": or_null(POSITIVE),
        "bench.target": or_null(number(0, 1)),
        "bench.metric": choice(*METRICS),
        "bench.protocols": some_of(choice("knn", "linear")),
        "bench.epochs": whole(1),
        "bench.looks": whole(1),
        "bench.seeds": some_of(whole(0)),
        "bench.runs": TEXT,
    },
    "compare": {"bench.a": _RECORD, "bench.b": _RECORD},
}
