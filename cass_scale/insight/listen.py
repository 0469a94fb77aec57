"""Listening to the layers of a network while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def listening(parts: Mapping[str, nn.Module], see: Callable[[Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
    """What `see` makes of each part's output (of a tuple the first), by name, in the order in which they are called."""
    found: dict[str, Tensor] = {}

    def hear(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[name] = see(output[0] if isinstance(output, tuple | list) else output)

        return hook

    hooks = [part.register_forward_hook(hear(name)) for name, part in parts.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
