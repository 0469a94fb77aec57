"""Imports point down only, heavy packages stay behind one door, and what reads records never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import cass_scale

ROOT = Path(__file__).parents[1]
LAYERS = (  # a module may import its own layer and those before it; a folder stands for all that is in it
    "types errors words dist rng machine",
    "losses views warp colour filters encoders schedule precision meter checkpoint records monitor console optim "
    "methods.base norms backends",
    "methods data average results charts choice page samples estimate run selftest evidence grid slots forecast "
    "published robustness studies claims study_page release",
    "ledger train evaluation insight checkup",
    "cli verbs measure __init__ __main__",
)
APART = {"methods": ("data",), "data": ("methods",), "train": ("methods", "data")}
RIVALS = "measure.rivals"  # what the streams are held against uses the libraries in its own way
DOORS = {  # package -> the modules that may import it when they run; None: any one module
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "accelerate": {"cli", "verbs.wire", "train", "checkpoint"},
    "webdataset": None,
    "ffcv": None,
    "fsspec": None,
    "nvidia": None,
    "deepspeed": None,
    "h5py": None,
    "medmnist": None,
    "umap": None,
    "pydicom": None,
    "nibabel": None,
    "openslide": None,
    "onnxruntime": None,
    "huggingface_hub": None,
}
WITHOUT_TORCH = (
    "types", "errors", "records", "results", "charts", "choice", "page", "cli", "words", "checkup", "grid", "slots",
    "forecast",
)  # fmt: skip


class Import(NamedTuple):
    source: str  # module of ours, without the package's name
    target: str  # the same for one of ours, else the dotted name
    ours: bool
    at_start: bool  # on import, not inside a function or for the type checker
    for_types: bool  # under `if TYPE_CHECKING`


def modules(root: Path) -> dict[str, Path]:
    """Module name without the package -> file."""
    files = sorted((root / "cass_scale").rglob("*.py"))
    names = [".".join(f.relative_to(root / "cass_scale").with_suffix("").parts) for f in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def imports(root: Path) -> Iterator[Import]:
    known = modules(root)
    for source, file in known.items():
        tree = ast.parse(file.read_text())
        at_start = {id(node) for node in tree.body}
        for_types = {id(node) for block in tree.body if _for_types(block) for node in ast.walk(block)}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{file}:{node.lineno}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                ours = name.split(".")[0] == "cass_scale"
                target = _module(name, known) if ours else name
                yield Import(source, target, ours, id(node) in at_start, id(node) in for_types)


def _for_types(block: ast.stmt) -> bool:
    return isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"


def _module(name: str, known: dict[str, Path]) -> str:
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


def layer(module: str) -> int | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for number, row in enumerate(LAYERS):
            if ".".join(parts[:length]) in row.split():
                return number
    return None


def upward(root: Path) -> list[str]:
    """Imports against the order of the layers; what the package itself holds (its version) is free."""
    found = []
    for one in imports(root):
        source, target = layer(one.source), layer(one.target) if one.ours else 0
        if one.target != "__init__" and source is not None and target is not None and target > source:
            found.append(f"{one.source} (layer {source}) imports {one.target} (layer {target})")
    return found


def circles(root: Path) -> list[str]:
    """Modules that need themselves while they are being imported."""
    edges: dict[str, set[str]] = {}
    for one in imports(root):
        if one.ours and one.at_start and "__init__" not in (one.target, one.source):
            edges.setdefault(one.source, set()).add(one.target)
    return [name for name in edges if _reaches(edges, name, name)]


def _reaches(edges: dict[str, set[str]], start: str, goal: str) -> bool:
    seen: set[str] = set()
    todo = list(edges.get(start, ()))
    while todo:
        name = todo.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            todo += edges.get(name, ())
    return False


def test_every_module_has_a_layer() -> None:
    assert [m for m in modules(ROOT) if layer(m) is None] == [], "give it a place in LAYERS"


def test_imports_point_down_only() -> None:
    assert upward(ROOT) == []


def test_no_circles() -> None:
    assert circles(ROOT) == []


def test_rooms_that_never_import_each_other() -> None:
    broken = [
        f"{one.source} imports {one.target}"
        for one in imports(ROOT)
        for other in APART.get(one.source.split(".")[0], ())
        if one.ours and one.target.split(".")[0] == other and one.target != "methods.base"
    ]
    assert broken == []


@pytest.mark.parametrize("package", DOORS)
def test_package_stays_behind_its_door(package: str) -> None:
    outside = [one for one in imports(ROOT) if not one.ours and not one.for_types]
    users = {one.source for one in outside if one.target.split(".")[0] == package} - {RIVALS}
    allowed = DOORS[package]
    if allowed is None:
        assert len(users) <= 1, f"{package} is imported by {sorted(users)}: one file is its place"
    else:
        assert users <= allowed


def test_reading_records_does_not_load_torch() -> None:
    names = ", ".join(f"cass_scale.{m}" for m in WITHOUT_TORCH)
    code = f"import sys, {names}; print([m for m in ('torch', 'timm', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_module_hides_a_verb_of_the_package() -> None:
    """A module cass_scale.evaluate would replace the function of that name on import."""
    assert sorted(set(cass_scale.__all__) & {name.split(".")[0] for name in modules(ROOT)}) == []


def test_the_walk_finds_what_it_looks_for(tmp_path: Path) -> None:
    package = tmp_path / "cass_scale"
    (package / "data").mkdir(parents=True)
    (package / "rng.py").write_text("def late():\n    from cass_scale.data.plan import Plan\n")
    (package / "data" / "plan.py").write_text(
        "from cass_scale import types, views\nfrom cass_scale.data import folder\n"
    )
    (package / "data" / "folder.py").write_text("import cass_scale.data.plan\n")
    (package / "views.py").write_text("import torch\n")
    assert upward(tmp_path) == ["rng (layer 0) imports data.plan (layer 2)"]
    assert sorted(circles(tmp_path)) == ["data.folder", "data.plan"]
