"""One ONNX file: images float32 [batch, 3, S, S] in [0, 1] -> features [batch, dim], normalised inside."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from cass_scale.encoders import Encoder
from cass_scale.errors import ConfigError
from cass_scale.records import atomic_write_bytes
from cass_scale.release.check import probe, same_features
from cass_scale.types import JSON

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 3)
COLOUR = "\x1b"  # begins what torch paints in its messages
LIMIT = 2**31  # bytes of one protobuf message


def write(encoder: Encoder, folder: Path) -> JSON:
    """Write the file into `folder`, run it in onnxruntime on batches of several sizes, and compare.

    Raises ConfigError where torch cannot convert the model, CassScaleError when a feature is another one.
    """
    weights = sum(x.nbytes for x in encoder.body.state_dict().values())
    if weights > 0.95 * LIMIT:
        raise ConfigError(
            f"to=onnx: {encoder.spec.model} has {weights / 2**30:.1f} GiB of weights, and an ONNX file holds less "
            "than 2 GiB; take to=timm"
        )
    proto = convert(encoder)
    atomic_write_bytes(folder / FILE, proto.SerializeToString())
    off = max(run_and_compare(encoder, folder / FILE, batch) for batch in BATCHES)
    return {"opset": proto.opset_import[0].version, "difference": off}


def convert(encoder: Encoder) -> Any:
    """The model as an onnx.ModelProto. By torch.export: torch.onnx's older way is deprecated since torch 2.9."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            logging.getLogger("onnxscript").setLevel(logging.ERROR)  # what its optimizer leaves as it is
            program = torch.onnx.export(
                encoder.eval(), (probe(encoder, 2),), dynamo=True, verbose=False, input_names=["images"],
                output_names=["features"], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            f"to=onnx: torch {torch.__version__} cannot convert {encoder.spec.model} "
            f"({str(error).partition(COLOUR)[0].strip().splitlines()[0]}); take to=timm, or another version of torch"
        ) from error
    assert program is not None
    proto = program.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.value_info,
                 *proto.graph.input, *proto.graph.output):  # fmt: skip
        part.ClearField("metadata_props")  # stack traces, with the paths of this machine
        part.ClearField("doc_string")
    return proto


def run_and_compare(encoder: Encoder, path: Path, batch: int) -> float:
    """How far onnxruntime's features are off. Raises CassScaleError when too far."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # there is none in Linux builds
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = probe(encoder, batch)
    (features,) = session.run(["features"], {"images": images.numpy()})
    what = f"onnxruntime {onnxruntime.__version__} on {batch} images"
    return same_features(what, encoder, images, torch.from_numpy(features))
