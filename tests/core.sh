#!/usr/bin/env bash
# Tests the core as a user installs it: the wheel without extras, in a fresh environment for each torch that is named.
#   tests/core.sh 2.6.0 newest
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
work=$PWD/.venv-core
unset PYTHONPATH

rm -rf "$work"
"$bin/python" -m hatchling build --target wheel --directory "$work/wheel"
# The tests without the checkout, so that bbnet can only be imported from the wheel.
mkdir -p "$work/copy/tests"
cp pyproject.toml "$work/copy"
cp -r tests/conftest.py tests/sparsity tests/binary tests/diagnostics "$work/copy/tests"
cd "$work/copy"
for torch in "$@"; do
    requirement=torch==$torch
    if [ "$torch" = newest ]; then requirement=torch; fi
    "$bin/uv" venv --quiet --clear --python "$bin/python" "$work/env"
    "$bin/uv" pip install --quiet --python "$work/env" "$work"/wheel/*.whl "$requirement" \
        "pytest<9.2" pytest-xdist hypothesis
    "$work/env/bin/python" -c 'import bbnet, torch; print("bbnet", bbnet.__version__, bbnet.__file__, "torch", torch.__version__)'
    OMP_NUM_THREADS=1 "$work/env/bin/pytest" -n auto --dist loadgroup -m "not slow and not thorough" tests/sparsity tests/binary tests/diagnostics
done
