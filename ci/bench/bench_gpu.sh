#!/usr/bin/env bash
# The speed matrix on one NVIDIA GPU: DeepSeek-V3's own layer widths (one dense, one MoE layer, as one of 8, 16 and 32
# ranks holds it), bfloat16, and the timing models; what tells most comes first.
#   bash ci/bench/bench_gpu.sh [--minutes 10] [--out results-gpu] [--quick] [--dry-run]
#                              [--device cuda] [--layers "moe-32 dense-8 moe-8"] [--size 4096] [--rounds 9] [--busy]
# --minutes: stop then; each result is kept as soon as it is there, so a borrowed GPU gives what there was time for.
# --quick: what comes first alone, few rounds. --busy: keep, marked, what was timed while others used the machine.
# --device cpu: the same words on a CPU, without captures, to try them out.
# Needs this checkout, torch 2.9 or later as it is found, transformers and the base packages, 40 GiB of GPU memory.
# A step that fails does not stop the others. Results: <out>/bench-<part>-cuda.json, which go into data/recorded as
# docs/records.md says. Exit codes: 0 (at the deadline too), 1 if a step failed, 2 where it cannot run, with the reason.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
out=results-gpu
quick=0
dry=0
minutes=0
device=cuda
layers="moe-32 dense-8 moe-8"
more="dense-16 dense-32 moe-16"
models="w1 w2 l"
size=4096
rounds=
busy=()
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=${2:?--out needs a value}; shift 2 ;;
        --minutes) minutes=${2:?--minutes needs a value}; shift 2 ;;
        --device) device=${2:?--device needs a value}; shift 2 ;;
        --layers) layers=${2:?--layers needs a value}; more=; models=; shift 2 ;;
        --size) size=${2:?--size needs a value}; shift 2 ;;
        --rounds) rounds=${2:?--rounds needs a value}; shift 2 ;;
        --quick) quick=1; shift ;;
        --busy) busy=(--busy); shift ;;
        --dry-run) dry=1; shift ;;
        *) echo "bench_gpu.sh: unknown argument $1" >&2; exit 2 ;;
    esac
done
case "$minutes$size$rounds" in
    *[!0-9]*) echo "bench_gpu.sh: --minutes, --size and --rounds are whole numbers" >&2; exit 2 ;;
esac
[ -n "$rounds" ] || { [ "$quick" = 1 ] && rounds=7 || rounds=9; }
python=${PYTHON:-python3}
graph=compiled-captured # ours beside transformers' fastest
ladder=aclgraph
[ "$device" != cpu ] || { graph=ge; ladder=ge; }

reason=$("$python" - "$device" <<'PY'
import sys
try:
    import torch
except Exception as error:  # a torch that cannot be imported is an answer
    print(f"torch cannot be imported ({error})")
else:
    if sys.argv[1] != "cuda":
        pass
    elif torch.version.cuda is None:
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

failed=()
missed=()
# step NAME ARGUMENTS...: one call of ci/bench/speed.py, ended at the deadline
step() {
    local name=${1//\//-} start=$SECONDS left=86400 code=0
    shift
    [ "$minutes" = 0 ] || left=$((minutes * 60 - SECONDS))
    local words=("$python" ci/bench/speed.py --device "$device" --dtype bfloat16 --rounds "$rounds" --out "$out")
    words+=("${busy[@]}" "$@")
    if [ "$dry" = 1 ]; then
        printf "%q " "${words[@]}"; echo
        return
    fi
    if [ "$left" -lt 5 ]; then
        missed+=("$name")
        return
    fi
    timeout -k 5 "$left" "${words[@]}" >"$out/$name.log" 2>&1 || code=$?
    # inductor says only in a log that it captured nothing; nothing here asks it to
    ! grep -q "skipping cudagraphs" "$out/$name.log" || code=3
    if [ "$code" = 0 ]; then
        echo "ok      $name  $((SECONDS - start)) s"
    elif [ "$code" = 124 ] || [ "$code" = 137 ]; then
        echo "cut     $name  after $((SECONDS - start)) s, at the deadline"
        missed+=("$name")
    else
        echo "FAILED  $name  $((SECONDS - start)) s: $(tail -n 1 "$out/$name.log")"
        failed+=("$name")
    fi
}
# sized PART LAYER PHASE BATCH [MORE...]: one case
sized() {
    local part=$1 layer=$2 phase=$3 batch=$4
    shift 4
    step "$part-$layer-$phase-b$batch" --part "$part" --profile "$layer" --phase "$phase" --batch "$batch" \
        --size "$size" "$@"
}

[ "$dry" = 1 ] || mkdir -p "$out"
first=${layers%% *}
for layer in $layers; do sized graphs "$layer" decode 1; done
# most of the buffer is empty: what an attention that reads only what is filled is for
step "graphs-$first-decode-b1-buffer4" --part graphs --profile "$first" --phase decode --batch 1 \
    --size "$size" --buffer 4
sized peer "$first" decode 1 --graph "$graph"
sized peer "$first" prefill 1 --graph "$graph"
for model in ${models%% *}; do step "peer-$model" --part peer --profile "$model" --graph "$graph" --batch 1; done
for layer in $layers; do sized graphs "$layer" prefill 1; done
if [ "$quick" = 0 ]; then
    for layer in $layers; do sized graphs "$layer" decode 8; done
    for model in ${models#w1}; do
        step "peer-$model" --part peer --profile "$model" --graph "$graph" --batch 1
    done
    for layer in ${layers#"$first"}; do
        sized peer "$layer" decode 1 --graph "$graph"
        sized peer "$layer" prefill 1 --graph "$graph"
    done
    sized peer "$first" decode 8 --graph "$graph"
    for layer in $layers; do sized ladder "$layer" decode 1 --graph "$ladder" --main; done
    for layer in $more; do
        sized graphs "$layer" decode 1
        sized graphs "$layer" prefill 1
        sized peer "$layer" decode 1 --graph "$graph"
    done
    for model in $models; do
        step "ladder-$model" --part ladder --profile "$model" --graph "$ladder"
        step "scaling-$model" --part scaling --profile "$model" --graph "$graph"
    done
fi
[ "$dry" = 0 ] || exit 0
[ ${#missed[@]} = 0 ] || echo "no time for: ${missed[*]}"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; logs are in $out"
    exit 1
fi
echo "results are in $out"
