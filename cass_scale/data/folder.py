"""The folder stream: image files by row of the manifest."""

from __future__ import annotations

from typing import Any

from cass_scale.data import parts
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.stream import PlanStream


class FolderStream(PlanStream):
    """A PlanStream over the files of a folder; `options` are PlanStream's."""

    def __init__(self, manifest: Manifest, plan: Plan, **options: Any) -> None:
        super().__init__(manifest, plan, Files(manifest), **options)


class Files:
    """The images of a manifest as files below its root, or parts of files: a Source."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def read(self, row: int) -> bytes:
        """The whole file, or its part as PNG. Raises BadImage when it cannot be read."""
        return parts.read(self.manifest.root, self.manifest.keys[row])

    def name(self, row: int) -> str:
        """Its path."""
        return str(self.manifest.root / self.manifest.keys[row])
