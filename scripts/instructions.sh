#!/usr/bin/env bash
# Instructions that one more short text takes, from file to vector, by valgrind: what 301 texts take
# less what one takes, by 300. Each text is a batch of its own.
#   instructions.sh VECMILL [MODEL]
# MODEL is a folder, by default a tiny model of the tests, so that the host's part is seen.
set -euo pipefail
vecmill=$(realpath "$1")
model=$(realpath "${2:-$(dirname "$0")/../testdata/models/bert-mean}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count() {
  # One thread computes: threads that wait for each other would be counted, too.
  seq "$1" | sed 's/.*/{"text": "and be con and"}/' >"$work/texts.jsonl"
  valgrind --tool=callgrind --callgrind-out-file=/dev/null --log-file="$work/log" \
    "$vecmill" embed --model "$model" --device cpu --cpu-threads 1 --tokenization-workers 1 --max-batch-tokens 8 \
    --input "$work/texts.jsonl" --output "$work/out.npy" >/dev/null 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
  sed -nE 's/.*Collected : ([0-9]+).*/\1/p' "$work/log"
}
one=$(count 1)
many=$(count 301)
echo "$(((many - one) / 300)) instructions a text ($one for one, $many for 301)"
