#!/bin/sh
# One nightly run on a cluster, for cron, systemd and CI alike. Options for pytest may follow.
#
#   PD_NIGHTLY_CLUSTER  cluster file, or `twin` (needed)
#   PD_NIGHTLY_DIR      where nights are kept: <night>/, latest, allure-history.jsonl
#                       (pd-nightly in the home directory)
#   PD_NIGHTLY_KEEP     nights that are kept (30)
#
# Each night leaves junit.xml, findings.json, summary.md, summary.html, allure-report/ with
# the history of the nights before, logs/, and all of it as archive.tar.gz. Ends with
# pytest's exit code: 0 green, 1 red, 10 cluster not fit, 11 something left behind.
set -u

project=$(cd "$(dirname "$0")/../.." && pwd)
cluster=${PD_NIGHTLY_CLUSTER:?name the cluster file in PD_NIGHTLY_CLUSTER}
nights=${PD_NIGHTLY_DIR:-$HOME/pd-nightly}
keep=${PD_NIGHTLY_KEEP:-30}
history=$nights/allure-history.jsonl
night=$nights/$(date -u +%Y%m%dT%H%M%SZ)

mkdir -p "$night" || exit 3
[ ! -f "$history" ] || cp "$history" "$night/"

# In the background, so that a cancelled job reaches pytest, which then tears down.
"$project/.venv/bin/pytest" --cluster "$cluster" --report "$night" \
    --junitxml "$night/junit.xml" "$@" &
run=$!
trap 'kill -TERM "$run"' INT TERM
wait "$run"
code=$?
# A signal ends the first wait early; pytest's own end is what counts.
while kill -0 "$run" 2>/dev/null; do
    wait "$run"
    code=$?
done

[ ! -f "$night/allure-history.jsonl" ] || cp "$night/allure-history.jsonl" "$history"
tar -czf "$nights/archive.tmp" -C "$nights" --exclude allure-results "$(basename "$night")" &&
    mv "$nights/archive.tmp" "$night/archive.tar.gz"
ln -sfn "$(basename "$night")" "$nights/latest"

# The oldest nights go; only directories that this script has named.
ls -d "$nights"/[0-9]*T[0-9]*Z | head -n "-$keep" | while IFS= read -r old; do
    rm -r "$old"
done
exit "$code"
