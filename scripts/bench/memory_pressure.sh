#!/usr/bin/env bash
# Ten minutes of adversarial load beside a greedy neighbour:
# memory_pressure.sh path/to/vecmill-bench folder
set -euo pipefail
mkdir -p "$2"
"$1" pressure --seconds 600 --json "$2/pressure.json" --svg "$2/pressure.svg" | tee "$2/pressure.txt"
