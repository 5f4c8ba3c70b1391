#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine alone, to try things out: a head that runs no work, and workers.
#
#   cluster/local.sh [WORKERS]      2 by default; Ctrl-C ends it
#
# Ports and the folder of its logs are its own, so that it does not meddle with another Ray on this machine. Change them
# by the variables below; RAY names the program, RAY_AUTH_TOKEN_PATH the file of the token.
set -euo pipefail

workers=${1:-2}
if ! [[ $workers =~ ^[1-9][0-9]?$ ]]; then
    echo "local.sh: $workers is not a number of workers between 1 and 99" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${MVAD_PORT:-46379}
dashboard_port=${MVAD_DASHBOARD_PORT:-48265}
cpus=${MVAD_CPUS:-2} # that each worker claims to have; an actor takes a half, and decoding needs a whole one beside it
if [[ -z ${RAY:-} ]]; then
    RAY=$here/.venv/bin/ray
    [[ -x $RAY ]] || RAY=$(command -v ray) || { echo "local.sh: no ray; run make demo, or say where: RAY=..." >&2; exit 2; }
fi

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # nothing is to be drained when the whole cluster ends
if [[ -z ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} ]]; then
    "$RAY" get-auth-token --generate >/dev/null 2>&1
fi
folder=$(mktemp -d "${MVAD_TEMP:-/tmp}/mvad-ray.XXXXXX") # short: Ray makes sockets in it

# With job control every node is a process group of its own: it can be ended as a whole, and Ctrl-C does not race us.
set -m
groups=()

# shellcheck disable=SC2329  # the traps call it
end() {
    trap - EXIT
    trap '' INT TERM
    local group
    for group in "${groups[@]}"; do kill -TERM "$group" 2>/dev/null || true; done
    for _ in {1..15}; do # three seconds for Ray to end by itself
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

# One after another: nodes that start at the same time choose the same names for their sockets.
start() { # name of the node, arguments of ray start
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
a head and $workers workers of $cpus CPU each; Ctrl-C ends them. In another terminal, in $here:

  export RAY_AUTH_MODE=token${RAY_AUTH_TOKEN_PATH:+ RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH}
  $RAY status --address 127.0.0.1:$port
  ${RAY%ray}mvad run demo/data --out demo/local --backbone efficientnet_lite0 --address 127.0.0.1:$port
  $RAY job submit --address http://127.0.0.1:$dashboard_port --working-dir . -- \\
      ${RAY%ray}python jobs/run.py $here/demo/data --out $here/demo/submitted --backbone efficientnet_lite0
TEXT
wait -n || true
echo "local.sh: a node has ended by itself" >&2
exit 1
