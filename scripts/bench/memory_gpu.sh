#!/usr/bin/env bash
# The memory pool beside other allocators, on a GPU: memory_gpu.sh path/to/vecmill-bench folder
# Writes JSON and pictures; scripts/bench/memory_report.py makes a document of them.
set -euo pipefail
bench=$1
out=$2
mkdir -p "$out"
days=$(mktemp -d)
trap 'rm -rf "$days"' EXIT

"$bench" latency --json "$out/latency.json"
for model in minilm bge-large; do
  "$bench" replay --model "$model" --device cuda:0 --json "$out/replay-$model.json" \
    --svg "$out/replay-$model.svg"
  "$bench" record --model "$model" --out "$days/$model"
  for mode in "" --expandable; do
    python3 "$(dirname "$0")/torch_allocator.py" "$days/$model/tensors.csv" $mode \
      --json "$out/torch-$model$mode.json"
  done
done
