#!/usr/bin/env bash
# The path of one request, from the socket to the vector on the CPU and back, as a reader walks it:
#   walk.sh
# Counts the files of scripts/walk.txt and their lines of code (no blank lines, comments or unit
# tests), twice: all of them, and without those marked "head", whose head comment is enough to go on.
# Fails when a file is not there or there is more than the limits in the list.
set -euo pipefail
cd "$(dirname "$0")/.."
list=scripts/walk.txt

# code FILE: its lines up to the unit tests, without blank ones and comments.
code() {
  awk '/^#\[cfg\(test\)\]/ { exit } /^[[:space:]]*$/ || /^[[:space:]]*\/\// { next } { n++ } END { print n + 0 }' "$1"
}

files=0 lines=0 shown_files=0 shown_lines=0 failed=0
declare -A limit
while read -r word rest; do
  case $word in
    '' | '#'*) continue ;;
    limit) limit[${rest% *}]=${rest##* } && continue ;;
  esac
  if [ ! -f "crates/$word" ]; then
    echo "walk: crates/$word is not there: $list no longer tells the way" >&2
    failed=1
    continue
  fi
  count=$(code "crates/$word")
  printf '%5d  %-4s  %s\n' "$count" "$rest" "$word"
  files=$((files + 1)) lines=$((lines + count))
  if [ "$rest" != head ]; then
    shown_files=$((shown_files + 1)) shown_lines=$((shown_lines + count))
  fi
done <"$list"
echo "all: $files files, $lines lines of code; without heads: $shown_files files, $shown_lines lines"

# most NAME NUMBER: whether it is within its limit.
most() {
  if [ "$2" -gt "${limit[$1]:-0}" ]; then
    echo "walk: $2 $1, at most ${limit[$1]:-0} are promised in $list" >&2
    failed=1
  fi
}
most "files" "$files"
most "lines" "$lines"
most "files without heads" "$shown_files"
exit "$failed"
