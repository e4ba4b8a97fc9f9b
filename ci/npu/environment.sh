# shellcheck shell=bash
# Sourced by bash in the container (BASH_ENV) and by ci/npu/run.sh: CANN's environment, wherever its installer put it.
for script in /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do
    if [ -z "${ASCEND_HOME_PATH:-}" ] && [ -f "$script" ]; then
        # shellcheck disable=SC1090
        source "$script"
    fi
done
