#!/usr/bin/env bash
# The paper's setting on one 48 GB card, one command per set: pretraining of 100 epochs, then fine-tuning end to end with its
# shares of the labels, five times each, and one page about it. On a real RTX 8000, or under its limits on another device.
# Killed, the same command goes on.
#
#     DATA=/data/ISIC_2019 launch/rtx8000.sh isic2019 [--dry-run] [--trial] [--cpu] [key=value ...]
#
# SET       isic2019, brain_mri, dermofit or autoimmune: a leaf of configs/data, which says what DATA must hold
# --dry-run what it would do and cost; starts nothing
# --trial   tiny arms and some steps, on any folder of labelled images: shows that everything is there, in minutes
# --cpu     on the processor
# key=value go to pretrain and win over what is said here, as method=cass_contrast, hardware.mode=fast or run.dir=FOLDER;
#           hardware, hardware.mode, train.device, train.precision and seed also go to evaluate
set -euo pipefail

sets="isic2019 brain_mri dermofit autoimmune"
set_name="${1:-}"
refuse() { echo "$0: $1" >&2; exit 2; }
[[ -n "$set_name" && " $sets " == *" $set_name "* ]] || refuse "SET=$set_name: one of ${sets// /, } is needed"
[[ -n "${DATA:-}" ]] || refuse "DATA is not set: the folder with the images, as in DATA=DIR $0 $set_name"
shift

dry="" trial="" given=()
words=(hardware=rtx8000 method=cass_paper "data.path=$DATA" train.batch_size=16)
scoring=(protocol=finetune hardware=rtx8000)
for word in "$@"; do
  case "$word" in
    --dry-run) dry=1 ;;
    --trial) trial=1 ;;
    --cpu) given+=(train.device=cpu) ;;
    *=*) given+=("$word") ;;
    *) refuse "$word: --dry-run, --trial, --cpu or key=value is needed" ;;
  esac
done
out="runs/rtx8000-$set_name${trial:+-trial}"
if [[ -n "$trial" ]]; then
  words+=(arms=tiny train.max_steps=6 train.log_every=2)
  scoring+=(protocol.epochs=1)
else
  words+=("data=$set_name" train.epochs=100)
  case "$set_name" in autoimmune | dermofit) labels="[0.1,1.0]" ;; *) labels="[0.01,0.1,1.0]" ;; esac  # section 5.2
  scoring+=("labels=$labels" seeds=5)
fi

# merged WORD... : WORDs of which none has a key that `given` has, then `given`
merged() {
  local word other
  for word in "$@"; do
    for other in "${given[@]}"; do [[ "${other%%=*}" == "${word%%=*}" ]] && continue 2; done
    printf '%s\0' "$word"
  done
  [[ ${#given[@]} -eq 0 ]] || printf '%s\0' "${given[@]}"
}
mapfile -d '' -t pretrain < <(merged "${words[@]}" "run.dir=$out")
for word in "${pretrain[@]}"; do
  case "$word" in
    run.dir=*) out="${word#run.dir=}" ;;
    hardware.mode=* | seed=*) scoring+=("$word") ;;
    train.device=* | train.precision=*) scoring+=("${word#train.}") ;;
  esac
done

if [[ -n "$dry" ]]; then
  cass-scale pretrain "${pretrain[@]}" --dry-run
  echo "then: cass-scale evaluate run.dir=$out ${scoring[*]}"
  echo "and:  cass-scale report runs=$out out=$out.html"
  exit
fi
cass-scale pretrain "${pretrain[@]}"
cass-scale evaluate "run.dir=$out" "${scoring[@]}"
cass-scale report "runs=$out" "out=$out.html"
echo "The report lies at $out.html"
