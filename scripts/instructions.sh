#!/usr/bin/env bash
# Instructions that one more short text takes, from file to vector, by valgrind: what 2,001 texts take
# less what one takes, by 2,000. Each text is a batch of its own. Of several binaries each is counted
# in turn, and beside the first.
#   instructions.sh VECMILL [VECMILL…]
# MODEL is a folder, by default a tiny model of the tests, so that the host's part is seen. RUNS (3)
# are counted, of which the middle one counts.
#
# The same binary gives the same within 0.3 %. Three things see to that: one thread computes and one
# tokenises, for threads that wait for each other would be counted, too; so many texts, that what a
# start happens to do is nothing; and the calibration of quanta's clock, a loop that ends by time (half
# a million instructions or four), is taken out.
set -euo pipefail
model=$(realpath "${MODEL:-$(dirname "$0")/../testdata/models/bert-mean}")
more=2000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The instructions of a run with so many texts.
count() {
  local vecmill=$1 texts=$2
  rm -f "$work"/count*
  seq "$texts" | sed 's/.*/{"text": "and be con and"}/' >"$work/texts.jsonl"
  valgrind --tool=callgrind --callgrind-out-file="$work/count" --log-file="$work/log" \
    "$vecmill" embed --model "$model" --device cpu --cpu-threads 1 --tokenization-workers 1 --max-batch-tokens 8 \
    --input "$work/texts.jsonl" --output "$work/out.npy" >/dev/null 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
  # A call is `cfn=(number) name`, the name only where it is new, `calls=…`, and `line inclusive`.
  awk '
    /^c?fn=/ {
      match($0, /\([0-9]+\)/)
      id = substr($0, RSTART, RLENGTH)
      if (length($0) > RSTART + RLENGTH) name[id] = substr($0, RSTART + RLENGTH + 1)
      called = /^cfn/ ? name[id] : ""
    }
    /^calls=/ { getline; if (called ~ /quanta::Calibration::calibrate/) timed += $2 }
    /^totals:/ { all += $2 }
    END { printf "%d\n", all - timed }
  ' "$work/count"
}

middle() { sort -n | sed -n "$(((RUNS + 1) / 2))p"; }

RUNS=${RUNS:-3}
for run in $(seq "$RUNS"); do
  for number in $(seq $#); do
    one=$(count "${!number}" 1)
    many=$(count "${!number}" $((more + 1)))
    echo $(((many - one) / more)) >>"$work/texts.$number"
  done
done
first=$(middle <"$work/texts.1")
for number in $(seq $#); do
  awk -v binary="${!number}" -v all="$(sort -n "$work/texts.$number" | tr '\n' ' ')" -v own="$(middle <"$work/texts.$number")" \
    -v first="$first" 'BEGIN { printf "%s: %d instructions a text (of %s), %.4f of the first\n", binary, own, all, own / first }'
done
