#!/usr/bin/env bash
# The GPU record: what one GPU machine without a network says in at most nine minutes. Steps at the paper's arms and the
# largest batches in 48 GiB, savings against every recipe of DINO at 384 and 224 px, loaders with decoding on the GPU,
# views, and at last, since it takes longest to begin, steps of compiled arms. One record folder per part.
#
#     benchmarks/gpu.sh [--cpu] [OUT]
#
# OUT       where the record folders go; default $OUT, else runs/gpu. Nothing else is written, or taken away, but for a
#           temporary folder of its own
# --cpu     everything on the processor with tiny arms: shows that all of it works
# WHEELS=DIR  a folder of wheels of the packages that the machine lacks, made by `pip wheel`: all of them are installed, and
#           nothing beside them, into the temporary folder
# PYTHON=python3   the interpreter that has torch
# DATA=DIR  a folder of images; default: drawn by a program, 512 px
# PARTS="step savings-384 savings-224 loaders views compile"   some of them
# LIMIT=530 seconds; every part has an end on this clock, and what one leaves over the next ones may take
#
# Benchmarks know their end: they record what is done by then, and say which sides are not. A part that fails or is stopped
# by the clock all the same is told, and the others go on. Exit code: 0 all done, 1 some part was not.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}" out="${OUT:-}" cpu=""
for word in "$@"; do
  case "$word" in
    --cpu) cpu=1 ;;
    -*) echo "$word: --cpu, or the folder for the records is needed" >&2; exit 2 ;;
    *) out="$word" ;;
  esac
done
out="${out:-runs/gpu}"
parts="${PARTS:-step savings-384 savings-224 loaders views compile}"
for part in $parts; do
  case "$part" in step | savings-384 | savings-224 | loaders | views | compile) ;; *) echo "PARTS: there is no part $part" >&2; exit 2 ;; esac
done
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export CASS_SCALE_CACHE="$work/cache" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
mkdir -p "$out" || exit 2
if [[ -n "$cpu" ]]; then
  export CUDA_VISIBLE_DEVICES=""
  arms=tiny images=64 scale=0.5 side=128 full=96 small=64 batch=8 turns=1 limit="${LIMIT:-1800}"
  step=("bench.batch_sizes=[8,16]" "bench.only=[plain,channels_last,recompute]" bench.steps=5 bench.seconds=10 bench.memory_gib=1)
  compile=("bench.batch_sizes=[8]" "bench.only=[compile]" bench.steps=5 bench.seconds=10)
  loaders=("bench.images=64" bench.size=96 bench.batch=16 "bench.workers=[2]" bench.epochs=2 bench.turns=1)
  views=(--size 96 --batch 8 --repeats 5)
else
  arms=paper_random images=256 scale=1.5 side=512 full=384 small=224 batch=16 turns=3 limit="${LIMIT:-530}"
  step=("bench.batch_sizes=[128,16]" "bench.only=[plain,channels_last,side_by_side]" bench.seconds=8 bench.memory_gib=48)
  compile=("bench.batch_sizes=[16]" "bench.only=[graphs,compile]" bench.seconds=8)
  loaders=("bench.images=1024" bench.size=384 bench.batch=64 "bench.workers=[8]" bench.epochs=6 bench.turns=1)
  views=(--size 384 --batch 16 --repeats 30)
fi

# by PERCENT COMMAND...: run COMMAND, stopped when PERCENT of the clock are over
by() {
  local left=$((limit * $1 / 100 - SECONDS))
  shift
  [[ $left -gt 0 ]] || return 124
  timeout --kill-after=5 "$left" "$@"
}

# bench PERCENT WORD...: a benchmark that knows when PERCENT of the clock are over, but for a twentieth to end and to write
bench() {
  local left=$((limit * $1 / 100 - limit / 20 - SECONDS))
  by "$1" "$python" -m cass_scale bench "bench.limit=$((left > 1 ? left : 1))" "${@:2}"
}

prepare() {
  if [[ -n "${WHEELS:-}" ]]; then
    "$python" -m pip install --quiet --no-index --find-links "$WHEELS" --no-deps --target "$work/site" "$WHEELS"/*.whl || return
    export PYTHONPATH="$PYTHONPATH:$work/site"
  fi
  "$python" -c 'import cass_scale.cli, timm, torch; print("torch", torch.__version__, "timm", timm.__version__)' || return
  [[ -z "${DATA:-}" ]] || return 0
  DATA="$work/images"
  local words=(data=phantom "data.images=$images" "data.scale=$scale" "size=$side" "out=$work/tars")
  by 12 "$python" -m cass_scale shard "${words[@]}" --quiet || return
  mkdir "$DATA" && for tar in "$work"/tars/*.tar; do tar -x -f "$tar" -C "$DATA" --wildcards '*.jpg' || return; done
}

savings() {
  local words=("bench.arms=$arms" "data.path=$DATA" bench.methods=[cass] "bench.batch=$batch" "bench.turns=$3")
  bench "$2" name=savings "${words[@]}" "bench.images=$images" "bench.words=['arms.image_size=$1']" "out=$4"
}

# run PART FOLDER: the part, which leaves its record in FOLDER. Ends on the clock, in percent: 34, 60, 72, 79, 82, 100
run() {
  case "$1" in
    step) bench 34 name=step "bench.arms=$arms" "data.path=$DATA" "bench.images=$images" "${step[@]}" "out=$2" ;;
    savings-384) savings "$full" 60 "$turns" "$2" ;;
    savings-224) savings "$small" 72 1 "$2" ;;
    loaders) bench 79 name=loaders "data.path=$DATA" "bench.only=[folder,webdataset,dali,imagefolder,dali_reader]" "${loaders[@]}" "out=$2" ;;
    views) by 82 "$python" "$root/benchmarks/views.py" "${views[@]}" --out "$2" ;;
    compile) bench 100 name=step "bench.arms=$arms" "${compile[@]}" "out=$2" ;;
  esac
}

prepare || { echo "gpu.sh: PYTHON=$python cannot run cass_scale, or drew no images in time; nothing was measured" >&2; exit 1; }
hardware=cpu
[[ -n "$cpu" ]] || hardware="$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')" \
  || { echo "gpu.sh: torch sees no CUDA device; use --cpu" >&2; exit 1; }
undone=()
for part in $parts; do
  echo "== $part, at $SECONDS s of $limit"
  run "$part" "$out/$(date -u +%F)_${part}_$hardware"
  code=$?
  [[ $code -eq 0 ]] && continue
  undone+=("$part")
  case $code in 124 | 137) why="was stopped by the clock" ;; *) why="failed, exit code $code" ;; esac
  echo "gpu.sh: $part $why" >&2
done
echo "== $SECONDS s; records in $out${undone[*]:+; not done: ${undone[*]}}"
[[ ${#undone[@]} -eq 0 ]]
