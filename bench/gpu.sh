#!/usr/bin/env bash
# Everything that a GPU must show: bench/gpu.sh [PART...], all parts where none is named. It goes on after a failure,
# ends with a table, and exits with 1 where a step failed. Each part stays within ten minutes:
#
#   check     the driver and the GPU take what is built
#   build     the package with native code and CUDA kernels, into build/gpu: nothing is installed or fetched
#   test      the tests that need a GPU, but for the slow one
#   slow      100,000 random rows
#   sanitize  the CUDA kernel's tests under compute-sanitizer
#   bench     the ops: perinucleus, linear_cross_entropy, fingerprint_loss, anchored_adamw
#   embed     an 8B-shaped model: a step, and 1,024 fingerprints (EMBED_NUM="1024 24576" EMBED_SECONDS=7200 for more)
#   profile   the CUDA kernel under ncu
#
# It needs Python with torch for CUDA, transformers, triton, numpy, scipy, pytest, pytest-benchmark and hypothesis, and
# to build cmake, ninja, pybind11, setuptools, a C++ compiler and nvcc 12.8 or newer. PYTHON names it (default: .venv's,
# else python3); wheels in the folder WHEELS (default: .whl), of what is missing, are used without a network. Results
# go to OUT (default: bench/results), the log of all to OUT, else to build/gpu.
set -uo pipefail

PARTS=(check build test slow sanitize bench embed profile)
BUILT=build/gpu
RESULTS=${OUT:-bench/results}
LOG=${OUT:-$BUILT}/gpu.log
WHEELS=${WHEELS:-.whl}
TABLE=()
FAILED=0

default_python() {
  if [[ -x .venv/bin/python ]]; then echo "$PWD/.venv/bin/python"; else echo python3; fi
}

# Of a compute capability such as 8.6: which of the compiled kernels it runs.
kernel_for() {
  case "$1" in
    8.*) echo sm_80 ;;
    9.0) echo sm_90a ;;
    10.*) echo sm_100 ;;
    1[1-9].*) echo "PTX of sm_100" ;;
    *) return 1 ;;
  esac
}

# Of a CUDA version such as 13.0: the oldest major version of the driver that runs what it compiled.
oldest_driver() {
  case "$1" in
    12.*) echo 525 ;;
    13.*) echo 580 ;;
    *) return 1 ;;
  esac
}

nvcc_version() {
  nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p'
}

note() {
  TABLE+=("$(printf '%-44s %-14s %5s s' "$1" "$2" "$3")")
}

# step NAME SECONDS COMMAND...: its output goes to the log, its outcome into the table.
step() {
  local name=$1 limit=$2 began=$SECONDS code=0 outcome=passed
  shift 2
  {
    echo
    echo "== $name: $*"
  } >> "$LOG"
  echo "gpu.sh: $name" >&2
  timeout --kill-after=10 "$limit" "$@" >> "$LOG" 2>&1 || code=$?
  if ((code == 124 || code == 137)); then
    outcome="over ${limit} s"
  elif ((code != 0)); then
    outcome="failed ($code)"
  fi
  note "$name" "$outcome" $((SECONDS - began))
  if ((code != 0)); then
    FAILED=1
    tail -n 15 "$LOG" >&2
  fi
}

skip() {
  note "$1" "skipped: $2" 0
}

checks() {
  local capability driver kernel name oldest version
  command -v nvidia-smi > /dev/null || { echo "no nvidia-smi: no NVIDIA driver is installed here"; return 1; }
  version=$(nvcc_version) || { echo "no nvcc: put CUDA's bin folder on PATH"; return 1; }
  oldest=$(oldest_driver "$version") || { echo "nvcc $version: CUDA 12.8 or newer is needed"; return 1; }
  while IFS=, read -r name driver capability; do
    driver=${driver// /} capability=${capability// /}
    if ! kernel=$(kernel_for "$capability"); then
      echo "$name: no kernel is built for compute capability $capability"
      return 1
    fi
    if ((${driver%%.*} < oldest)); then
      echo "$name: driver $driver is too old for CUDA $version: $oldest or newer"
      return 1
    fi
    echo "$name: driver $driver takes CUDA $version, compute capability $capability runs $kernel"
  done < <(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader)
  "$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print("torch", torch.__version__)'
}

builds() {
  "$PYTHON" setup.py --quiet build --build-lib "$BUILT/lib" --build-temp "$BUILT/temp" || return 1
  "$PYTHON" -c '
import oml_fast, oml_fast.kernels.perinucleus
from oml_fast import backends
print(oml_fast.__file__)
kernels = backends.availability("cuda_kernels")
print(kernels)
raise SystemExit(not kernels.available)'
}

part_check() {
  step "check" 60 "$SELF" --checks
}

part_build() {
  step "build" 540 env OML_FAST_REQUIRE_NATIVE=1 OML_FAST_CUDA=1 "$SELF" --builds
}

gpu_tests() {
  # Only the files with such tests: others import what a GPU machine need not have.
  grep -rlE 'mark\.gpu' tests --include='test_*.py'
}

part_test() {
  local files
  mapfile -t files < <(gpu_tests)
  step "tests" 540 "$PYTHON" -m pytest -q -p no:cacheprovider -m "gpu and not slow" "${files[@]}"
}

part_slow() {
  local files
  mapfile -t files < <(gpu_tests)
  step "slow tests" 580 "$PYTHON" -m pytest -q -p no:cacheprovider -m "gpu and slow" "${files[@]}"
}

part_sanitize() {
  local tool
  if ! command -v compute-sanitizer > /dev/null; then
    skip "compute-sanitizer" "not installed"
    return
  fi
  for tool in memcheck racecheck synccheck; do
    # Without torch's cache every tensor has bounds of its own; a graph cannot be captured then.
    step "compute-sanitizer, $tool" 190 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      "$PYTHON" -m pytest -q -p no:cacheprovider tests/ops/test_perinucleus_cuda.py \
      -k "not triton and (strides or ties or rows_that or no_rows)"
  done
}

part_bench() {
  local op
  for op in linear_cross_entropy fingerprint_loss anchored_adamw; do
    step "bench $op" 100 "$PYTHON" "bench/bench_$op.py" --device cuda --out "$RESULTS/${op}_cuda.json"
  done
  step "bench perinucleus" 280 "$PYTHON" bench/bench_perinucleus.py --device cuda --out "$RESULTS/perinucleus_cuda.json"
}

part_embed() {
  local -a sizes
  read -ra sizes <<< "${EMBED_NUM:-1024}"
  step "bench embed, ${sizes[*]} fingerprints" "${EMBED_SECONDS:-580}" \
    env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    "$PYTHON" bench/bench_embed_gpu.py --num "${sizes[@]}" --out "$RESULTS/embed_gpu.json"
}

part_profile() {
  if ! command -v ncu > /dev/null; then
    skip "ncu" "not installed"
    return
  fi
  step "ncu, perinucleus" 300 ncu --clock-control none --kernel-name regex:perinucleus_kernel --launch-skip 1 \
    --launch-count 2 --section SpeedOfLight --section MemoryWorkloadAnalysis --section LaunchStats --section Occupancy \
    --section WarpStateStats "$PYTHON" -c '
import torch
from oml_fast.ops import perinucleus
x = torch.randn(128, 128_256, device="cuda") * 3
for logits in (x, x, x.bfloat16()):
    perinucleus(logits, 0.8, 16, backend="cuda", checked=False)
torch.cuda.synchronize()'
}

environment() {
  local wheel
  PYTHON=${PYTHON:-$(default_python)}
  SELF=bench/gpu.sh
  export PYTHON
  if ! command -v nvcc > /dev/null && [[ -x /usr/local/cuda/bin/nvcc ]]; then
    export PATH="/usr/local/cuda/bin:$PATH"
  fi
  mkdir -p "$BUILT" "$RESULTS" "$(dirname "$LOG")"
  for wheel in "$WHEELS"/*.whl; do
    [[ -e $wheel && ! -e $BUILT/site ]] || continue
    "$PYTHON" -m pip install -q --no-index --no-deps --target "$BUILT/site" "$WHEELS"/*.whl >> "$LOG" 2>&1
  done
  export PYTHONPATH="$PWD/$BUILT/lib:$PWD/$BUILT/site${PYTHONPATH:+:$PYTHONPATH}"
}

main() {
  local part
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
  case "${1:-}" in
    --checks) checks; return ;;
    --builds) builds; return ;;
    -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; return ;;
  esac
  (($#)) || set -- "${PARTS[@]}"
  for part in "$@"; do
    [[ " ${PARTS[*]} " == *" $part "* ]] || { echo "gpu.sh: no part $part: use ${PARTS[*]}" >&2; return 2; }
  done
  environment
  for part in "$@"; do "part_$part"; done
  printf '%s\n' "${TABLE[@]}"
  echo "results in $RESULTS, log in $LOG"
  return "$FAILED"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  main "$@"
fi
