#!/usr/bin/env bash
# Checks vecmill on the machine that its bundle (gpu-bundle.sh) was unpacked on:
#   run.sh [--model FOLDER] [--out FOLDER] [--quick]
# Needs an NVIDIA driver with NVRTC and cuBLASLt (VECMILL_CUDA_LIBRARIES names folders to look in),
# and no Rust. Prints a line for each step; all that a step printed is in --out (here: results).
# With a model, the one packed or --model's, its vectors of the GPU are compared with the CPU's, and
# the encoder is timed. --quick leaves out what takes minutes, compiling all kernels for all GPUs
# that there are. Fails when a step does; without a GPU only the first one and the CPU's run.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=$here/model out=$here/results quick=
while [ $# -gt 0 ]; do
  case $1 in
    --model) model=${2:?a folder} && shift 2 ;;
    --out) out=${2:?a folder} && shift 2 ;;
    --quick) quick=yes && shift ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
  esac
done
mkdir -p "$out"
export VECMILL_TESTDATA=$here/testdata RUST_BACKTRACE=1
vecmill=$here/bin/vecmill
passed=0 failed=0 skipped=0

line() { printf '%-4s  %-40s %s\n' "$1" "$2" "$3"; }

# step NAME COMMAND...: runs the command, keeps what it prints, and says how it ended.
step() {
  local name=$1 log=$out/${1// /-}.log began=$SECONDS status tests
  shift
  "$@" >"$log" 2>&1
  status=$?
  tests=$(sed -n 's/^test result:.* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 passed, \2 failed, /p' "$log")
  if [ $status = 0 ] && [[ $tests != "0 passed"* ]]; then
    passed=$((passed + 1))
    line pass "$name" "$tests$((SECONDS - began)) s"
  else
    failed=$((failed + 1))
    line FAIL "$name" "$tests$((SECONDS - began)) s, exit code $status: $log"
    grep -E '^test .* FAILED|panicked at|^vecmill: |^error' "$log" | cut -c1-150 | head -n 12 | sed 's/^/      /'
  fi
}

skip() {
  skipped=$((skipped + 1))
  line skip "$1" "$2"
}

has_gpu() { timeout 60 "$vecmill" devices --json | grep -q '"device": "cuda:'; }

devices() { timeout 60 "$vecmill" devices && has_gpu; }

# tests PROGRAM ARGUMENT...: one of the test programs.
tests() { timeout --kill-after=5 600 "$here/tests/$1" "${@:2}"; }

# embed DEVICE: vectors of a few texts, one a line.
embed() {
  timeout 120 "$vecmill" embed --model-id "$model" --device "$1" \
    'a quick brown fox' 'jumps' 'over the lazy dog, again and again and again' '東京は日本の首都です' |
    sed 's/.*"embedding":\[\(.*\)\].*/\1/; s/,/ /g'
}

# Fails unless the GPU's vectors have a cosine of at least 0.999 to the CPU's.
agreement() {
  paste -d' ' <(embed cpu) <(embed cuda:0) | awk '
    { n = NF / 2; ab = aa = bb = 0
      for (i = 1; i <= n; i++) { ab += $i * $(i + n); aa += $i ^ 2; bb += $(i + n) ^ 2 }
      cosine = NF && NF % 2 == 0 ? ab / sqrt(aa * bb) : 0
      print "cosine", cosine
      if (!(cosine >= 0.999)) bad = 1 }
    END { exit bad || NR != 4 }'
}

speed() {
  timeout --kill-after=5 120 "$here/bin/vecmill-bench" encode --model "$model" --device cuda:0 \
    --lengths 128,mixed --windows 3 --json "$out/encode.json"
}

echo "vecmill $(cat "$here/COMMIT" 2>/dev/null), $(date -u +%FT%TZ), $(uname -sr)"
step devices devices
sed 's/^/      /' "$out/devices.log"
step "cpu conformance" tests cpu-conformance
if has_gpu; then
  step "cuda units" tests cuda-lib --include-ignored --test-threads=1 --skip compiles
  step "cuda probe" tests cuda-probe --include-ignored
  step "cuda driver and products" tests cuda-gpu --ignored
  formats="float16 bfloat16 float32"
  # FP8 is for Hopper.
  [ "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader --id=0 2>/dev/null)" != 9.0 ] || formats+=" fp8"
  for format in $formats; do
    step "cuda conformance in $format" tests cuda-conformance --ignored --nocapture "in_$format::"
  done
  step "cuda conformance beside these" tests cuda-conformance --ignored --nocapture \
    --skip in_float16:: --skip in_bfloat16:: --skip in_float32:: --skip in_fp8::
  step "cuda whole models" tests cuda-whole --ignored --nocapture
  grep '^|' "$out/cuda-whole-models.log" | sed 's/^/      /'
  step "a fault under load" tests engine-faults --ignored --nocapture
  if [ -n "$quick" ]; then
    skip "cuda kernels for all GPUs" "--quick"
  else
    step "cuda kernels for all GPUs" tests cuda-lib --ignored compiles
  fi
else
  skip cuda "no GPU"
fi
if [ ! -d "$model" ]; then
  skip model "none was packed: --model FOLDER names one"
elif has_gpu; then
  step "model on GPU and CPU" agreement
  step "model speed" speed
  cat "$out/model-speed.log"
else
  step "model on the CPU" embed cpu
fi
echo "$passed passed, $failed failed, $skipped skipped; logs in $out"
[ "$failed" = 0 ]
