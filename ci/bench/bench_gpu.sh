#!/usr/bin/env bash
# The speed matrix on one NVIDIA GPU: DeepSeek-V3's own layer widths (one dense, one MoE layer, as one of 8, 16 and 32
# ranks holds it), bfloat16, CUDA graphs as the graph tier; and the timing models.
#   bash ci/bench/bench_gpu.sh [--out results-gpu] [--quick] [--dry-run]
# --quick: one layer of each kind, a few rounds. Needs this checkout, a CUDA build of torch and 40 GiB of GPU memory
# (17 with --quick). A step that fails does not stop the others. Results: <out>/bench-<part>-cuda.json, which go into
# data/recorded as CONTRIBUTING.md says. Exit codes: 0, 1 if a step failed, 2 where it cannot run, with the reason.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
out=results-gpu
quick=0
dry=0
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=${2:?--out needs a value}; shift 2 ;;
        --quick) quick=1; shift ;;
        --dry-run) dry=1; shift ;;
        *) echo "bench_gpu.sh: unknown argument $1" >&2; exit 2 ;;
    esac
done
python=${PYTHON:-python3}

reason=$("$python" - <<'PY'
try:
    import torch
except Exception as error:  # a torch that cannot be imported is an answer
    print(f"torch cannot be imported ({error})")
else:
    if torch.version.cuda is None:
        print(f"torch {torch.__version__} is no CUDA build: install one as pytorch.org says")
    elif not torch.cuda.is_available():
        print("torch sees no GPU: `nvidia-smi` must list one, and its driver must fit CUDA " + torch.version.cuda)
    elif not torch.cuda.is_bf16_supported():
        print(f"{torch.cuda.get_device_name()} does not compute in bfloat16")
PY
) || reason="$python cannot be started"
if [ -n "$reason" ] && [ "$dry" = 0 ]; then
    echo "bench_gpu.sh: cannot run here: $reason" >&2
    exit 2
fi

layers=(dense-8 dense-16 dense-32 moe-8 moe-16 moe-32)
rounds=15
if [ "$quick" = 1 ]; then
    layers=(dense-32 moe-32)
    rounds=7
fi
failed=()
# step NAME ARGUMENTS...: one call of ci/bench/speed.py
step() {
    local name=$1 start=$SECONDS
    shift
    local words=("$python" ci/bench/speed.py --device cuda --dtype bfloat16 --rounds "$rounds" --out "$out" "$@")
    if [ "$dry" = 1 ]; then
        printf "%q " "${words[@]}"; echo
    elif "${words[@]}" >"$out/$name.log" 2>&1; then
        echo "ok      $name  $((SECONDS - start)) s"
    else
        echo "FAILED  $name  $((SECONDS - start)) s: $(tail -n 1 "$out/$name.log")"
        failed+=("$name")
    fi
}

[ "$dry" = 1 ] || mkdir -p "$out"
for layer in "${layers[@]}"; do
    step "limit-$layer" --part limit --profile "$layer" --graph aclgraph --batch 1 --phase decode --size 4096
    step "limit-prefill-$layer" --part limit --profile "$layer" --graph aclgraph --phase prefill --size 4096
    step "peer-$layer" --part peer --profile "$layer" --graph aclgraph --size 4096
    step "ladder-$layer" --part ladder --profile "$layer" --graph aclgraph --main
done
if [ "$quick" = 0 ]; then
    for profile in w1 w2 l; do
        step "ladder-$profile" --part ladder --profile "$profile" --graph aclgraph
        step "peer-$profile" --part peer --profile "$profile" --graph aclgraph
        step "scaling-$profile" --part scaling --profile "$profile" --graph aclgraph
    done
fi
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; logs are in $out"
    exit 1
fi
[ "$dry" = 1 ] || echo "all steps passed; results are in $out"
