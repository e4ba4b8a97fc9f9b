#!/usr/bin/env bash
# Everything that can be proven on a machine with NPUs, in one command:
#   bash ci/npu/run.sh [--device npu] [--out results-npu] [--dry-run]
# doctor, tests, all notebooks on one card and on all, text on one card and on all (the tokens must be equal) in eager
# and both graph modes, a record of the ladder, and kernel times beside the published ones. A step that fails does not stop the others; the exit code is 1 then.
# --device cpu rehearses the script, --dry-run prints what would run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
device=npu
out=results-npu
dry=0
while [ $# -gt 0 ]; do
    case "$1" in
        --device) device=${2:?--device needs a value}; shift 2 ;;
        --out) out=${2:?--out needs a value}; shift 2 ;;
        --dry-run) dry=1; shift ;;
        *) echo "run.sh: unknown argument $1" >&2; exit 2 ;;
    esac
done
# shellcheck source=ci/npu/environment.sh
source ci/npu/environment.sh

count_cards() {
    local found=0 file
    for file in /dev/davinci[0-9]*; do
        [ -e "$file" ] && found=$((found + 1))
    done
    echo $((found > 0 ? found : 1))
}

cards=${CARDS:-$(count_cards)}
all=$(seq -s, 0 $((cards - 1)))
ranks=$((cards > 8 ? 8 : cards)) # the embedded model divides into 8 at most
while [ $((8 % ranks)) -ne 0 ]; do ranks=$((ranks - 1)); done
failed=()

# step NAME COMMAND...: run it, log it to $out/NAME.log, note a failure
step() {
    local name=$1 start=$SECONDS
    shift
    if [ "$dry" = 1 ]; then
        printf "%q " "$@"; echo
        return
    fi
    if "$@" >"$out/$name.log" 2>&1; then
        echo "ok      $name  $((SECONDS - start)) s"
    else
        echo "FAILED  $name  $((SECONDS - start)) s: $(tail -n 1 "$out/$name.log")"
        failed+=("$name")
    fi
}

[ "$dry" = 1 ] || mkdir -p "$out"
step doctor dsv3-port doctor --json
step tests python3 -m pytest -q tests
step notebooks-1 env ASCEND_RT_VISIBLE_DEVICES=0 dsv3-port tutorial --profile npu --device "$device" --quiet \
    --out "$out/notebooks-1"
if [ "$cards" -gt 1 ]; then
    step notebooks-all env ASCEND_RT_VISIBLE_DEVICES="$all" dsv3-port tutorial --profile npu --device "$device" --quiet \
        --out "$out/notebooks-all"
fi

step shard dsv3-port shard --model-path data/tiny-dsv3 --output-path "$out/tiny-ranks" --world-size "$ranks" --dtype fp32
text() { # text NAME arguments...: greedy tokens of the embedded model
    local name=$1
    shift
    step "text-$name" dsv3-port infer --device "$device" --dtype float32 --input-max-len 64 --max-new-tokens 32 \
        --prompt "Once upon a time" --json "$out/text-$name.json" "$@"
}
text 1 --model-dir data/tiny-dsv3
text ge --model-dir data/tiny-dsv3 --exe-mode dynamo
text aclgraph --model-dir data/tiny-dsv3 --exe-mode dynamo --enable-aclgraph 1
text all --model-dir "$out/tiny-ranks"
text all-ge --model-dir "$out/tiny-ranks" --exe-mode dynamo
text all-aclgraph --model-dir "$out/tiny-ranks" --exe-mode dynamo --enable-aclgraph 1
step same-tokens python3 ci/npu/same_tokens.py "$out/text-1.json" "$out/text-ge.json" "$out/text-aclgraph.json" \
    "$out/text-all.json" "$out/text-all-ge.json" "$out/text-all-aclgraph.json"
step record dsv3-port record --device "$device" --out "$out"

step kernels python3 ci/npu/profile_kernels.py --device "$device" --out "$out/kernels"
[ "$device" = cpu ] || step own-kernels dsv3-port npu-kernels import "$out/kernels" --out "$out/own-kernels.csv"

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; logs are in $out"
    exit 1
fi
[ "$dry" = 1 ] || echo "all steps passed; results are in $out (CONTRIBUTING.md says how to hand in a record)"
