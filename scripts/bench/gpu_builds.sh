#!/usr/bin/env bash
# Two builds of vecmill-bench on a GPU: whether they compute the same, to the bit, and their speeds in turns
# (old, new, new, old):
#   gpu_builds.sh OLD NEW MODELS TINY OUT
# MODELS is a folder of models as gpu_models.py makes them, TINY that of the tests' models,
# as far as both builds know them.
set -euo pipefail
old=$1 new=$2 models=$3 tiny=$4 out=$5
mkdir -p "$out"

# same NAME ARGUMENT...: prints how many vectors there are and how many differ.
same() {
  "$old" digest --device cuda:0 "${@:2}" >"$out/$1-old.txt"
  "$new" digest --device cuda:0 "${@:2}" >"$out/$1-new.txt"
  local differ
  differ=$(diff "$out/$1-old.txt" "$out/$1-new.txt" | grep -c '^<' || true)
  echo "$1: $(wc -l <"$out/$1-old.txt") vectors' digests, $differ differ"
}

for format in float16 bfloat16 float32 fp8; do
  same "tiny-$format" --models "$tiny" --dtypes "$format"
done
for model in minilm bge-base bge-large; do
  for format in float16 fp8; do
    same "$model-$format" --model "$models/$model" --dtypes "$format"
  done
done

for model in minilm bge-base bge-large; do
  for turn in old-1 new-1 new-2 old-2; do
    program=$old
    [ "${turn%-*}" = old ] || program=$new
    echo "$model $turn"
    "$program" encode --model "$models/$model" --device cuda:0 --lengths 16,128,512,mixed --tokens 16384 \
      --windows 4 --short 12 --json "$out/$model-$turn.json"
    "$program" encode --model "$models/$model" --device cuda:0 --lengths 64 --tokens 64 --windows 3 --short 1 \
      --json "$out/$model-$turn-small.json"
  done
done
