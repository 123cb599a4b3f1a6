#!/usr/bin/env bash
# One-node Ray cluster for tests, in its own network namespace with only a loopback device, because Ray listens on all
# addresses and runs whatever it is sent. Needs root on Linux.
#
#   ray_node.sh up FOLDER [CPUS]      start it if it is not running; FOLDER/env says how to reach it
#   ray_node.sh run FOLDER COMMAND... run a command in its namespace
#   ray_node.sh down FOLDER           stop what was started there
#
# RAY names the `ray` command (default: from PATH). Exit code 77, with the reason: not possible on this machine.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cannot() { echo "Ray is not possible here: $*" >&2; exit 77; }
[ $# -ge 2 ] || usage
action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
shift 2
ray=${RAY:-ray}

first() { # the first process of the namespaces, if it is still running; everything else ends with it
    local outer inner
    outer=$(cat "$folder/pid" 2>/dev/null) && grep -qaF "$folder" "/proc/$outer/cmdline" 2>/dev/null || return
    inner=$(cat "/proc/$outer/task/$outer/children") && [ -n "$inner" ] && echo "${inner%% *}"
}

up() {
    [ "$(id -u)" = 0 ] || cannot "a network namespace needs root"
    command -v ip >/dev/null || cannot "ip is not installed (iproute2)"
    command -v nsenter >/dev/null || cannot "nsenter is not installed (util-linux)"
    command -v "$ray" >/dev/null || cannot "ray is not installed (pip install 'vaerun[ray]')"
    unshare --net true 2>/dev/null || cannot "network namespaces are not allowed"
    if first >/dev/null; then
        echo "up: . $folder/env"
        return
    fi
    [ -s "$folder/token" ] || (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$folder/token")
    cat >"$folder/env" <<EOF
export RAY_ADDRESS=127.0.0.1:6379 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
export RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0
EOF
    . "$folder/env"
    # --kill-child and a process namespace: when the holder ends, so do all processes of Ray.
    setsid unshare --net --pid --fork --kill-child --mount-proc sh -c 'ip link set lo up && exec "$0" start --head --block \
        --node-ip-address=127.0.0.1 --port=6379 --num-cpus="$1" --include-dashboard=false --disable-usage-stats \
        --object-store-memory=100000000 --temp-dir="$2"' "$ray" "${1:-$(nproc)}" "$folder/ray" >"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    for _ in $(seq 300); do
        if run "$ray" status >/dev/null 2>&1; then
            echo "up: . $folder/env"
            return
        fi
        kill -0 "$(cat "$folder/pid")" 2>/dev/null || break
        sleep 0.2
    done
    tail -20 "$folder/log" >&2
    down
    exit 1
}

run() { # in the cluster's network, but outside its process namespace
    local pid
    pid=$(first) || cannot "there is no cluster in $folder (ray_node.sh up $folder)"
    . "$folder/env"
    nsenter --net="/proc/$pid/ns/net" "$@"
}

down() {
    local pid
    if pid=$(first); then
        kill "$pid"
        for _ in $(seq 150); do
            [ "$(first)" = "$pid" ] || break
            sleep 0.1
        done
        if [ "$(first)" = "$pid" ]; then kill -KILL "$pid"; fi
    fi
    rm -f "$folder/pid"
    echo "down: $folder"
}

case $action in
    up | down | run) "$action" "$@" ;;
    *) usage ;;
esac
