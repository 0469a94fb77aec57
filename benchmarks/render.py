"""Put the tables of benchmarks/records into the README.

python benchmarks/render.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.evidence import ROOT, render

if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
    print(f"rendered {readme}")
