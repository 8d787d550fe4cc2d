#!/usr/bin/env bash
# Packs what a GPU machine without a Rust toolchain needs to check vecmill:
#   gpu-bundle.sh [MODEL]
# Writes target/vecmill-gpu.tar.xz: the release binaries, the test binaries of the GPU's and the
# CPU's backend and of faults, the small models that they need, the scripts, and gpu-bundle-run.sh as
# run.sh.
# MODEL is a model's folder that is packed, too, such as one by 'vecmill convert --dtype f16'. Fails
# when the archive has 60 MB or more. There: tar -xJf vecmill-gpu.tar.xz && vecmill-gpu/run.sh
set -euo pipefail
model=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
archive=$target/vecmill-gpu.tar.xz
limit=60000000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/vecmill-gpu
mkdir -p "$bundle/bin" "$bundle/tests" "$bundle/testdata"

cargo build --release --locked -p vecmill-cli -p vecmill-bench
cp "$target/release/vecmill" "$target/release/vecmill-bench" "$bundle/bin/"

# pack_tests PACKAGE PREFIX [ARGUMENT...]: its test programs as PREFIX-NAME, the unit tests as
# PREFIX-lib; the arguments choose some.
pack_tests() {
  local built name program
  built=$(cargo test --release --locked --no-run -p "$1" "${@:3}" 2>&1) || { echo "$built" >&2; return 1; }
  while read -r name program; do
    cp "$program" "$bundle/tests/$2-$name"
  done < <(sed -nE 's|^ *Executable .*/([a-z_]+)\.rs \((.*)\)$|\1 \2|p' <<<"$built")
}
pack_tests vecmill-backend-cuda cuda
pack_tests vecmill-backend-cpu cpu
pack_tests vecmill-engine engine --test faults

cp -r testdata/models "$bundle/testdata/"
git ls-files -z scripts | tar --null -T - -cf - | tar -C "$bundle" -xf -
cp scripts/gpu-bundle-run.sh "$bundle/run.sh"
git describe --always --dirty >"$bundle/COMMIT"
if [ -n "$model" ]; then
  cp -rL "$model" "$bundle/model"
fi

tar -C "$work" -cf - vecmill-gpu | xz -T0 -6 >"$work/archive"
size=$(stat -c %s "$work/archive")
if [ "$size" -ge "$limit" ]; then
  echo "gpu-bundle: $size bytes are too many, the limit is $limit: convert the model with 'vecmill convert --dtype f16', take a smaller one, or leave it out" >&2
  exit 1
fi
mv "$work/archive" "$archive"
echo "$archive: $((size / 1000)) kB"
