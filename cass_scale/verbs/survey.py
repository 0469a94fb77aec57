"""What `verify` and `split` read: the sets that pretraining takes, every image anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cass_scale.data.sources import Survey
from cass_scale.types import JSON


def survey(data: JSON, build: Callable[..., Any]) -> Survey:
    """The set that `data` configures, by the function `survey` beside the one that makes its manifest."""
    keys = {key: value for key, value in data.items() if key not in ("max_bad", "noise")}
    there: Survey = build({**keys, "_target_": f"{data['_target_'].rpartition('.')[0]}.survey"})
    return there
