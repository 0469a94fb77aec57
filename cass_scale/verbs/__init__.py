"""One module per verb of the command line: wiring only. Each has `run(config, build, call) -> record`."""

from __future__ import annotations

VERBS: dict[str, tuple[str, str]] = {  # verb -> (what it does, a working example)
    "pretrain": (
        "pretrain encoders without labels",
        "cass-scale pretrain method=cass_contrast data=digits train.epochs=2 run.dir=runs/digits",
    ),
    "evaluate": (
        "score the encoders of a run on held-back images",
        "cass-scale evaluate run.dir=runs/digits protocol=knn",
    ),
    "compare": (
        "compare two runs on the same held-back images, with intervals",
        "cass-scale compare A=runs/cass B=runs/dino",
    ),
    "explain": (
        "show what the encoders of a run look at, and how their layers and features compare",
        "cass-scale explain run.dir=runs/digits",
    ),
    "export": (
        "write the encoders of a run for timm or ONNX, with a model card, or upload them",
        "cass-scale export run.dir=runs/digits to=timm",
    ),
    "predict": (
        "say what is on new images, by an evaluated run, as CSV",
        "cass-scale predict run.dir=runs/digits images=DIR out=predictions.csv",
    ),
    "report": (
        "write one HTML page about the runs of a folder",
        "cass-scale report runs=runs out=runs/report.html",
    ),
    "verify": (
        "find unreadable files, damaged shards, copies and leakage across splits in a set of images",
        "cass-scale verify data.path=DIR out=runs/verify",
    ),
    "split": (
        "write a labels.csv whose split is stratified and leaks nothing",
        "cass-scale split data.path=DIR out=clean.csv",
    ),
    "shard": (
        "turn a set of images into WebDataset shards, or a .beton of FFCV",
        "cass-scale shard source=DIR out=shards size=512",
    ),
    "bench": (
        "measure this machine on your own data: loaders, the training step; or compare two records",
        "cass-scale bench name=loaders data.path=DIR",
    ),
    "study": (
        "run a table or figure of the paper with its controls, one process per row",
        "cass-scale study name=batch_size preset=quick arms=tiny data.path=DIR",
    ),
    "doctor": ("check this machine and say what it lacks", "cass-scale doctor"),
}
