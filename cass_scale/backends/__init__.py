"""How a step is shared between ranks: one face, `engine.Engine`, and one file per way."""

BACKENDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
WHOLE = ("ddp", "zero1", "zero2")  # those in which every rank holds all weights at any time
