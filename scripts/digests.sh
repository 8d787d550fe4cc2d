#!/usr/bin/env bash
# One line for each model and device: how many lines of 'vecmill-bench digest' there were, and a
# digest of them all. Reads them from standard input; two builds that print the same lines compute
# the same vectors, to the bit, and plan the same memory.
#   vecmill-bench digest --models testdata/models --plans | scripts/digests.sh
set -euo pipefail
export LC_ALL=C
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
cat >"$lines"
for what in vector weights plan; do
  case $what in
    vector) key='$1 " " $2 " " $3 " " $4' ;;
    *) key='$1 " " $2 " " $3' ;;
  esac
  awk -v what="$what" "\$1 == what { print $key }" "$lines" | sort -u | while read -r group; do
    count=$(grep -c -F "$group " "$lines")
    echo "$group: $count lines, $(grep -F "$group " "$lines" | sha256sum | cut -c1-16)"
  done
done
