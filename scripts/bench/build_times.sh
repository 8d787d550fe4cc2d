#!/usr/bin/env bash
# How long builds take, in seconds: a clean release build of commits, in turns, and what one change of a
# kernel's source costs this one. Nothing is fetched: the registry must be there (`cargo fetch`). For an
# idle machine only.
#   build_times.sh [COMMIT…]        this commit, and others beside it
# TURNS (2) clean builds are timed of each commit.
set -euo pipefail
cd "$(dirname "$0")/../.."
kernel=crates/backend-cuda/kernels/norm.cu
work=$(mktemp -d)
trees=()
finish() {
  for tree in "${trees[@]}"; do git worktree remove --force "$tree"; done
  rm -rf "$work"
}
trap finish EXIT

# Seconds that a build of a tree takes: what, tree, target folder, flags.
timed() {
  local what=$1 tree=$2 target=$3 begin end
  shift 3
  begin=$(date +%s.%N)
  cargo build --manifest-path "$tree/Cargo.toml" --target-dir "$target" -p vecmill-cli --locked --offline --quiet "$@"
  end=$(date +%s.%N)
  awk -v what="$what" -v begin="$begin" -v end="$end" 'BEGIN { printf "%s: %.1f s\n", what, end - begin }'
}

commits=()
for commit in HEAD "$@"; do
  commit=$(git rev-parse --short "$commit")
  git worktree add --quiet --detach "$work/$commit" "$commit"
  trees+=("$work/$commit")
  commits+=("$commit")
done

for turn in $(seq "${TURNS:-2}"); do
  for commit in "${commits[@]}"; do
    rm -rf "$work/target"
    timed "clean release build of $commit, turn $turn" "$work/$commit" "$work/target" --release
  done
done

tree=${trees[0]}
for profile in dev release; do
  timed "before the change" "$tree" "$work/incremental" --profile "$profile" >/dev/null
  for turn in $(seq "${TURNS:-2}"); do
    echo "// A line more, $profile $turn." >>"$tree/$kernel"
    timed "after a change of $kernel, $profile, turn $turn" "$tree" "$work/incremental" --profile "$profile"
  done
done
