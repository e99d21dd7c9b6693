#!/usr/bin/env bash
# A rehearsal of the paper's systems at a size that two cores finish in a few hours; train/LOG.md has what came out.
#   train/rehearsal.sh DATA OUT [systems|ideas|report]     an interrupted rehearsal goes on when it is called again
# DATA holds clips/ and sonyc/. Real VGGish weights do not ship: a net of its shape with seeded random weights
# stands in, unless OUT/vggish holds another embedding already.
set -euo pipefail
data=$1 out=$2 what=${3:-all}
edgetag=${EDGETAG:-.venv/bin/edgetag}

# Everything smaller: fewer scenes, epochs and patience. No dropout in the convolutions: it asks for many more epochs.
size=(data.n_scenes=900 data.n_validation_scenes=240 root.epochs=7 root.conv_dropout=0.0
      "root.schedule={type: restarts, stagnation: 2, reduce: 0.1, milder: 0.1, minimum_rate: 2.0e-4}")
table_1=(branch.epochs=4 branch.conv_dropout=0.0 "branch.schedule={type: plateau, patience: 2, gamma: 0.1}")
table_2=(branch.epochs=6 branch.conv_dropout=0.0 "branch.schedule={type: plateau, patience: 2, gamma: 0.2}")

fit() {  # RUN RECIPE OPTIONS… -- OVERRIDES…
  local run=$out/$1 recipe=$2 options=() set=()
  shift 2
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  for override in "$@"; do set+=(--set "$override"); done
  if ! [ -e "$run/evaluation/scenes" ]; then
    [ -e "$run/recipe.json" ] && options+=(--resume)
    "$edgetag" train fit "$recipe" --data "$data" --out "$run" "${set[@]}" "${options[@]}"
    local embedding=()
    [[ " ${options[*]} " == *" --embedding "* ]] && embedding=(--embedding "$out/vggish")
    for split in validate scenes; do
      "$edgetag" train evaluate "$run" --data "$data" --split "$split" "${embedding[@]}" --json "$run/$split.json" >/dev/null
    done
  fi
}

if [ "$what" = all ] || [ "$what" = systems ]; then
  [ -e "$out/vggish" ] || "$edgetag" train embedding "$out/vggish" --random 0
  with=(--embedding "$out/vggish")
  fit cnn_vggish cnn_vggish "${with[@]}" -- "${size[@]}"
  fit hierarchical2 hierarchical2 "${with[@]}" --root "$out/cnn_vggish" -- "${size[@]}" "${table_2[@]}"
  fit hierarchical3 hierarchical3 "${with[@]}" --root "$out/cnn_vggish" -- "${size[@]}" "${table_2[@]}"
  fit hierarchical1 hierarchical1 "${with[@]}" --root "$out/cnn_vggish" -- "${size[@]}" "${table_1[@]}"
  fit cnn cnn -- "${size[@]}"
  fit hierarchical2_cnn hierarchical2_cnn --root "$out/cnn" -- "${size[@]}" "${table_2[@]}"
fi

# One idea of the paper left out (or put in) at a time, on the small net, three seeds each.
if [ "$what" = all ] || [ "$what" = ideas ]; then
  small=("${size[@]}" root.table=2 root.precision=float32 root.epochs=6)
  for seed in 1 2 3; do
    idea() { local name=$1; shift; fit "ideas/$name-$seed" cnn -- "${small[@]}" "seed=$seed" "name=$name" "$@"; }
    idea as_is
    idea no_augmentation data.augmentation.variants=0
    idea no_smoothing root.smoothing=0
    # At this size the rate of `as_is` falls below its minimum at the first reduction, and so never changes.
    idea warm_restarts "root.schedule={type: restarts, stagnation: 1, reduce: 0.1, milder: 0.1, minimum_rate: 5.0e-5}"
    with_branches() {
      local name=$1; shift
      fit "ideas/$name-$seed" hierarchical2_cnn --root "$out/ideas/as_is-$seed" -- \
        "${small[@]}" "${table_2[@]}" "seed=$seed" "name=$name" "$@"
    }
    with_branches own_category
    with_branches whole_dataset branch_negatives=dummy branch.epochs=1  # about as many steps
  done
fi

if [ "$what" = all ] || [ "$what" = report ]; then
  systems=(cnn_vggish hierarchical1 hierarchical2 hierarchical3 cnn hierarchical2_cnn)
  "$edgetag" train report "${systems[@]/#/$out/}" --out "$out/report.html"
  "$edgetag" train report "${systems[@]/#/$out/}" --out "$out/report.md"
  "$edgetag" train report "$out"/ideas/* --out "$out/ideas.md"
fi
