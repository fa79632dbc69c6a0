#!/bin/bash
# Runs fuzz targets one after another, each for so many seconds:
#
#   fuzz/run.sh SECONDS [TARGET…]
#
# Prints executions and findings of each, and fails when there is one. The input of a finding lies
# in fuzz/artifacts/TARGET. libFuzzer and the sanitizer need features that stable Rust has, but does
# not offer: hence RUSTC_BOOTSTRAP.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?how many seconds for each target?}
shift
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz@0.13
export RUSTC_BOOTSTRAP=1
host=$(rustc -vV | sed -n 's/^host: //p')
cargo fuzz build --target "$host"
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
# Inputs become files by the thousand: in memory, and gone afterwards.
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
failed=0
printf '%-12s %12s %8s %s\n' target executions edges finding
for target in "${targets[@]}"; do
	mkdir -p "corpus/$target" "artifacts/$target"
	log=target/$target.log
	finding=-
	"target/$host/release/$target" "corpus/$target" \
		-max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=20 \
		-print_final_stats=1 -artifact_prefix="artifacts/$target/" >"$log" 2>&1 || {
		finding=$(sed -n "s|.*Test unit written to ||p" "$log" | tail -n 1)
		finding="${finding:-see fuzz/$log}"
		failed=1
	}
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
	printf '%-12s %12s %8s %s\n' "$target" "${runs:-?}" "${edges:-?}" "$finding"
done
exit "$failed"
