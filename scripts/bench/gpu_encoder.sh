#!/usr/bin/env bash
# The encoder on a GPU beside its peers, and the server under load:
#   gpu_encoder.sh path/to/vecmill-bench path/to/vecmill folder-of-models out
# Writes out/results.jsonl, a line per measurement as soon as it is there, and out/clocks.csv, the
# card's clocks all along; scripts/bench/gpu_report.py makes a document of them. For each model the
# encoder runs before and after its peers, which run twice: A B B A. A step that fails or takes too
# long is named at the end, and the others go on.
#
# Variables: MODELS (minilm bge-base bge-large), STAGES (encode peers loads), DEVICE (cuda:0), DTYPES
# (float16), ENCODE_FLAGS, PEER_FLAGS, PEER_SECONDS (150), LOAD_FLAGS, SERVE_FLAGS (--device and --dtype).
set -uo pipefail
bench=$1 vecmill=$2 models=$3 out=$4
here=$(dirname "$0")
stages=${STAGES:-encode peers loads}
device=${DEVICE:-cuda:0}
mkdir -p "$out"
work=$(mktemp -d)
failed=()
export HF_HUB_OFFLINE=1

nvidia-smi --query-gpu=timestamp,name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu \
  --format=csv -lms 500 >"$out/clocks.csv" 2>&1 &
watcher=$!
trap 'kill $watcher 2>/dev/null; rm -rf "$work"' EXIT

# step SECONDS COMMAND...: runs the command, and keeps the figures that it leaves in $work/figures.json.
step() {
  local limit=$1 began=$SECONDS
  shift
  rm -f "$work/figures.json"
  echo "== $*"
  timeout --kill-after=5 "$limit" "$@" || failed+=("$* ($?)")
  if [ -s "$work/figures.json" ]; then
    tr -d '\n' <"$work/figures.json" >>"$out/results.jsonl"
    echo >>"$out/results.jsonl"
  fi
  echo "== $((SECONDS - began)) s"
}

has() { [[ " $stages " == *" $1 "* ]]; }

encode() { # MODEL TURN
  for dtype in ${DTYPES:-float16}; do
    step 90 "$bench" encode --model "$models/$1" --device "$device" --dtype "$dtype" --name "$2" \
      --json "$work/figures.json" ${ENCODE_FLAGS:-}
  done
}

for model in ${MODELS:-minilm bge-base bge-large}; do
  "$bench" texts --model "$models/$model" --count 4096 >"$work/texts.jsonl"
  if has encode; then encode "$model" before; fi
  if has peers; then
    step "${PEER_SECONDS:-150}" python3 "$here/gpu_peers.py" "$models/$model" --texts "$work/texts.jsonl" \
      --json "$work/figures.json" ${PEER_FLAGS:-}
    if has encode; then encode "$model" after; fi
  fi
  if has loads; then
    step 120 python3 "$here/gpu_loads.py" "$bench" "$vecmill" "$models/$model" \
      --out "$out/results.jsonl" --flags "${SERVE_FLAGS:---device $device --dtype float16}" \
      ${LOAD_FLAGS:-}
  fi
done

printf 'failed: %s\n' "${failed[@]:-nothing}"
[ ${#failed[@]} -eq 0 ]
