#!/usr/bin/env bash
# Build ci/npu/Dockerfile and run ci/npu/run.sh in it, with every card of this machine and the host's driver.
#   bash ci/npu/container.sh [arguments of ci/npu/run.sh]
# Results come back to ./results-npu. IMAGE names the image, BUILD=0 uses one that is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
image=${IMAGE:-dsv3-port-npu}

devices=()
for device in /dev/davinci[0-9]* /dev/davinci_manager /dev/devmm_svm /dev/hisi_hdc; do
    if [ -e "$device" ]; then
        devices+=(--device "$device")
    fi
done
if [ ${#devices[@]} -eq 0 ]; then
    echo "container.sh: no /dev/davinci*: this machine has no NPU, or its driver is not installed" >&2
    exit 2
fi
if [ "${BUILD:-1}" = 1 ]; then
    docker build -f ci/npu/Dockerfile -t "$image" .
fi

mounts=()
for path in /usr/local/Ascend/driver /usr/local/dcmi /usr/local/bin/npu-smi /usr/local/sbin/npu-smi \
    /etc/ascend_install.info /etc/hccn.conf; do
    if [ -e "$path" ]; then
        mounts+=(-v "$path:$path:ro")
    fi
done

mkdir -p results-npu
docker run --rm --network host --ipc host --shm-size 16g "${devices[@]}" "${mounts[@]}" \
    -v "$PWD/results-npu:/dsv3-port/results-npu" "$image" bash ci/npu/run.sh --out results-npu "$@"
