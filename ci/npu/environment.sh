# shellcheck shell=bash
# Sourced by bash in the container (BASH_ENV) and by ci/npu/run.sh: CANN's environment, wherever its installer put it, and
# the libraries of the driver, which set_env.sh does not know where the host's driver is mounted into a container.
ascend=${ASCEND_ROOT:-/usr/local/Ascend} # ASCEND_ROOT: installed elsewhere
case $- in *u*) strict=1 ;; *) strict=0 ;; esac
set +u # set_env.sh reads variables that may not be set
for script in "$ascend/cann/set_env.sh" "$ascend/ascend-toolkit/set_env.sh"; do
    if [ -z "$ASCEND_HOME_PATH" ] && [ -f "$script" ]; then
        # shellcheck disable=SC1090
        source "$script"
    fi
done
for folder in "$ascend/driver/lib64/common" "$ascend/driver/lib64/driver"; do
    if [ -d "$folder" ] && [[ ":$LD_LIBRARY_PATH:" != *":$folder:"* ]]; then
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
    fi
done
if [ "$strict" = 1 ]; then set -u; fi
