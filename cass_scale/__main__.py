"""`python -m cass_scale VERB ...`, also under `accelerate launch -m` and `torchrun -m`."""

import sys

from cass_scale.cli import program

if __name__ == "__main__":
    sys.exit(program())
