"""How ranks exchange gradients: what `train.*` tells DistributedDataParallel."""

from __future__ import annotations

from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

from cass_scale.types import JSON

HOOKS = {"fp32": DDPCommunicationHookType.NO, "bf16": DDPCommunicationHookType.BF16}


def gradients(train: JSON) -> DistributedDataParallelKwargs:
    """DDP's settings: no search for unused parameters, since every method uses all of its own at every step.

    A static graph and accumulation exclude each other: DDP would stop averaging from the second step on, and say
    nothing (pytorch/pytorch#187732). torch.compile splits graphs by DDP's buckets itself. Gradients that are never
    cleared stay outside the buckets, so that a checkpoint holds them alone.
    """
    return DistributedDataParallelKwargs(
        bucket_cap_mb=train["bucket_mb"],
        comm_hook=HOOKS[train["comm"]],
        find_unused_parameters=False,
        gradient_as_bucket_view=train["clear_gradients"],
        static_graph=train["accumulate"] == 1 and not train["compile"],
    )
