#!/usr/bin/env bash
# One process per GPU of this machine, or with --cpu on its cores; everything else goes to cass-scale.
# run:     launch/local.sh pretrain method=cass_contrast data.path=shards run.dir=runs/mine
#          launch/local.sh --ranks 2 --cpu pretrain data=digits arms=tiny train.epochs=2
set -euo pipefail
usage="usage: launch/local.sh [--ranks N] [--cpu] VERB key=value ...    (N: all GPUs that are visible; with --cpu, 2)"

ranks='' cpu=''
while [ $# -gt 0 ]; do
  case $1 in
    --ranks) ranks=${2:?$usage}; shift 2 ;;
    --cpu) cpu=yes; shift ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || { echo "$usage" >&2; exit 2; }

python=${PYTHON:-python}
if [ "$cpu" ]; then
  export ACCELERATE_USE_CPU=1 CUDA_VISIBLE_DEVICES=''
  ranks=${ranks:-2}
else
  gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
  ranks=${ranks:-$gpus}
  if [ "$gpus" = 0 ]; then
    echo "launch/local.sh: torch sees no GPU here; add --cpu, or run cass-scale doctor" >&2
    exit 2
  elif [ "$ranks" -gt "$gpus" ]; then
    echo "launch/local.sh: --ranks $ranks needs as many GPUs, and torch sees $gpus; take --ranks $gpus" >&2
    exit 2
  fi
fi
read -ra meet <<<"${CASS_SCALE_MEET:---standalone}" # launch/hosts.sh says how hosts meet
exec "$python" -m cass_scale.torchrun --nproc-per-node "$ranks" "${meet[@]}" -m cass_scale "$@"
