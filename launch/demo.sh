#!/usr/bin/env bash
# The main job on embedded data: CASS as published, contrast between its arms, and the null control; then their
# scores on held-back images and one page about all of it. The data are synthetic: the page shows that the tool
# works and what it reports, and says nothing about medicine.
set -euo pipefail
out="${1:-runs/demo}"
epochs="${DEMO_EPOCHS:-20}"

for method in cass cass_contrast cass_null; do
  cass-scale pretrain "method=$method" data=phantom arms=tiny "train.epochs=$epochs" \
    train.log_every=12 monitor.every=12 "run.dir=$out/$method"
  for protocol in knn linear; do
    cass-scale evaluate "run.dir=$out/$method" "protocol=$protocol"
  done
done
cass-scale report "runs=$out" "out=$out/report.html"
echo "The report lies at $out/report.html"
