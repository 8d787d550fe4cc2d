#!/usr/bin/env bash
# Runs fuzz targets under libFuzzer and prints a table. Needs a C++ compiler and the toolchain that builds vecmill.
#
#   scripts/fuzz.sh [SECONDS] [TARGET…]      600 seconds of every target by default
#
# JOBS targets run at once (2). New inputs go to target/fuzz/, findings to fuzz/artifacts/. What libFuzzer needs to see is
# compiled in by flags that a stable toolchain has; with a nightly one, `cargo fuzz run TARGET` checks memory as well.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
shift || true
jobs=${JOBS:-2}
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' fuzz/Cargo.toml)
fi
work=target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')

# Those of cargo-fuzz, but for the sanitizer.
flags="-Cpasses=sancov-module -Ccodegen-units=1"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$flag"
done
# With a target named, build scripts and macros are not instrumented.
RUSTFLAGS=$flags cargo build --manifest-path fuzz/Cargo.toml --release --target "$host"

one() {
    local target=$1
    mkdir -p "$work/$target" "fuzz/artifacts/$target"
    "fuzz/target/$host/release/$target" "$work/$target" "fuzz/corpus/$target" \
        -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -max_len=16384 -len_control=20 \
        -print_final_stats=1 -artifact_prefix="fuzz/artifacts/$target/" > "$work/$target.log" 2>&1 \
        || echo "finding: see $work/$target.log and fuzz/artifacts/$target/" >> "$work/$target.log"
}

running=0
for target in "${targets[@]}"; do
    one "$target" &
    running=$((running + 1))
    if [ "$running" -ge "$jobs" ]; then
        wait -n
        running=$((running - 1))
    fi
done
wait

printf '| target | seconds | executions | per second | edges | corpus | findings |\n|---|---|---|---|---|---|---|\n'
findings=0
for target in "${targets[@]}"; do
    log=$work/$target.log
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
    last=$(grep -aE '^#[0-9]+.*cov: ' "$log" | tail -1)
    edges=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' <<< "$last")
    corpus=$(sed -n 's/.*corp: \([0-9]*\).*/\1/p' <<< "$last")
    found=$(grep -ac '^finding:' "$log" || true)
    findings=$((findings + found))
    printf '| %s | %s | %s | %s | %s | %s | %s |\n' "$target" "$seconds" "$(stat number_of_executed_units)" \
        "$(stat average_exec_per_sec)" "$edges" "$corpus" "$found"
done
[ "$findings" -eq 0 ]
