#!/usr/bin/env bash
# Start a Ray cluster of several nodes on this machine, to try things out: a head that runs no work, and workers.
#
#   cluster/local.sh [WORKERS]      default: 2; stop it with Ctrl-C
#
# It has its own ports and log folder, so it does not disturb another Ray on this machine. The variables below change
# them; RAY is the path of the ray program, RAY_AUTH_TOKEN_PATH that of the token file.
set -euo pipefail

workers=${1:-2}
if ! [[ $workers =~ ^[1-9][0-9]?$ ]]; then
    echo "local.sh: $workers is not a number of workers between 1 and 99" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${MVAD_PORT:-46379}
dashboard_port=${MVAD_DASHBOARD_PORT:-48265}
cpus=${MVAD_CPUS:-2} # per worker; an actor takes half a CPU, and decoding needs one more
if [[ -z ${RAY:-} ]]; then
    RAY=$here/.venv/bin/ray
    [[ -x $RAY ]] || RAY=$(command -v ray) || { echo "local.sh: ray is not installed; run make demo, or set RAY to its path" >&2; exit 2; }
fi

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # the whole cluster ends, so there is nothing to drain
if [[ -z ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} ]]; then
    "$RAY" get-auth-token --generate >/dev/null 2>&1
fi
folder=$(mktemp -d "${MVAD_TEMP:-/tmp}/mvad-ray.XXXXXX") # a short path: Ray creates sockets in it

# With job control every node is its own process group: it can be stopped as a whole, and Ctrl-C reaches only this script.
set -m
groups=()

# shellcheck disable=SC2329  # called by the traps
end() {
    trap - EXIT
    trap '' INT TERM
    local group
    for group in "${groups[@]}"; do kill -TERM "$group" 2>/dev/null || true; done
    for _ in {1..15}; do # give Ray three seconds to stop by itself
        jobs -r | grep -q . || break
        sleep 0.2
    done
    for group in "${groups[@]}"; do kill -KILL -- "-$group" 2>/dev/null || true; done
    wait 2>/dev/null || true
    if [[ $1 == 0 ]]; then rm -rf "$folder"; else echo "local.sh: the logs are in $folder" >&2; fi
    exit "$1"
}
trap 'end 0' INT TERM
trap 'end 1' EXIT

# Start one after another: nodes that start at the same time choose the same names for their sockets.
start() { # arguments: name of the node, arguments of ray start
    "$RAY" start "${@:2}" --block --dashboard-agent-listen-port=0 \
        --min-worker-port=0 --max-worker-port=0 --object-store-memory="${MVAD_OBJECT_STORE:-268435456}" \
        >"$folder/$1.log" 2>&1 </dev/null &
    groups+=("$!")
    until grep -q "Ray runtime started" "$folder/$1.log"; do
        kill -0 "$!" 2>/dev/null || { cat "$folder/$1.log" >&2; exit 1; }
        sleep 0.1
    done
}

is_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

if is_open "$port" || is_open "$dashboard_port"; then
    echo "local.sh: port $port or $dashboard_port is in use; choose others with MVAD_PORT and MVAD_DASHBOARD_PORT" >&2
    exit 1
fi
start head --head --port="$port" --num-cpus=0 --num-gpus=0 --temp-dir="$folder" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port"
for ((number = 1; number <= workers; number++)); do
    start "worker-$number" --address="127.0.0.1:$port" --num-cpus="$cpus"
done

cat <<TEXT
A head and $workers workers with $cpus CPUs each are running; Ctrl-C ends them. In another terminal, in $here:

  export RAY_AUTH_MODE=token${RAY_AUTH_TOKEN_PATH:+ RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH}
  $RAY status --address 127.0.0.1:$port
  ${RAY%ray}mvad run demo/data --out demo/local --backbone efficientnet_lite0 --address 127.0.0.1:$port
  $RAY job submit --address http://127.0.0.1:$dashboard_port --working-dir . -- \\
      ${RAY%ray}python jobs/run.py $here/demo/data --out $here/demo/submitted --backbone efficientnet_lite0
TEXT
wait -n || true
echo "local.sh: a node stopped unexpectedly" >&2
exit 1
