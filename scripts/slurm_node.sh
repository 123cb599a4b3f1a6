#!/usr/bin/env bash
# One-node Slurm cluster for tests: munge, MariaDB, slurmdbd, slurmctld and slurmd on the loopback address. Needs root in
# a container without systemd; writes nothing outside FOLDER and touches no running service.
#
#   slurm_node.sh install      install the Debian packages (apt-get)
#   slurm_node.sh up FOLDER    start what is not running, then `. FOLDER/env` for sbatch, srun, sacct
#   slurm_node.sh down FOLDER  cancel its jobs, stop what was started there
#
# `up` and `down` are idempotent. Exit code 77, with the reason: not possible here (no root, packages missing).
# Accounting (MariaDB and slurmdbd) is required: submitit learns from sacct that a job died, and waits forever otherwise.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cannot() { echo "Slurm is not possible here: $*" >&2; exit 77; }
[ $# -ge 1 ] || usage
action=$1

if [ "$action" = install ]; then
    [ "$(id -u)" = 0 ] || cannot "apt-get needs root"
    command -v apt-get >/dev/null || cannot "there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge slurmdbd mariadb-server >/dev/null ||
        cannot "apt-get could not install the packages"
    exit
fi

[ $# -eq 2 ] || usage
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf
socket=$folder/run/munge.sock
sql=$folder/run/sql.sock
host=$(hostname -s)

pid_of() { # of the daemon $1 that was started here, if it is still running
    local pid
    pid=$(cat "$folder/run/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] &&
        ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null && echo "$pid"
}
until_ok() { # retry a command for ten seconds
    for _ in $(seq 100); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "slurm_node.sh: not ready: $* (logs: $folder/log)" >&2
    exit 1
}
ready() { # a lost or drained node is resumed
    case $(timeout 5 sinfo --noheader --format %T) in
        idle* | mixed* | alloc*) ;;
        *) scontrol update NodeName="$host" State=RESUME; return 1 ;;
    esac
}

up() {
    [ "$(id -u)" = 0 ] || cannot "the daemons need root"
    local name
    for name in munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch sacct; do
        command -v $name >/dev/null || cannot "$name is not installed (bash scripts/slurm_node.sh install)"
    done
    mkdir -p "$folder"/{run,log,state,spool,key}
    chmod 755 "$folder" "$folder/run"
    chmod 700 "$folder/key"
    # Use the same ports at every start: clients may have cached the configuration.
    [ -s "$folder/ports" ] || python3 -c 'if True:
        import socket
        held = [socket.socket() for _ in range(4)]
        for s in held: s.bind(("127.0.0.1", 0))
        print(*(s.getsockname()[1] for s in held))' >"$folder/ports"
    read -r port_ctld port_slurmd port_dbd port_sql <"$folder/ports"

    [ -s "$folder/key/munge" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/key/munge")
    if ! pid_of munged >/dev/null; then
        rm -f "$socket" "$socket.lock"
        # --force: munged rejects a key below a world-writable directory such as /tmp
        munged --force --key-file="$folder/key/munge" --seed-file="$folder/key/seed" --socket="$socket" \
            --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" 2>>"$folder/log/munged.log"
    fi

    if [ ! -d "$folder/sql/mysql" ]; then
        mariadb-install-db --no-defaults --user=root --datadir="$folder/sql" --skip-test-db \
            --auth-root-authentication-method=normal >"$folder/log/sql.log" 2>&1
    fi
    if ! pid_of mariadbd >/dev/null; then
        setsid mariadbd --no-defaults --user=root --datadir="$folder/sql" --socket="$sql" --bind-address=127.0.0.1 \
            --port="$port_sql" --pid-file="$folder/run/mariadbd.pid" --innodb-buffer-pool-size=64M \
            --innodb-lock-wait-timeout=900 >>"$folder/log/sql.log" 2>&1 </dev/null &
    fi
    until_ok timeout 5 mariadb --no-defaults -u root -S "$sql" -e "CREATE DATABASE IF NOT EXISTS accounting;
        CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm', slurm@127.0.0.1 IDENTIFIED BY 'slurm';
        GRANT ALL ON accounting.* TO slurm@localhost, slurm@127.0.0.1;"

    configure
    pid_of slurmdbd >/dev/null || slurmdbd 2>>"$folder/log/slurmdbd.log"
    until_ok timeout 5 sacctmgr --noheader list cluster
    [ -n "$(sacctmgr --noheader list cluster vaerun)" ] || sacctmgr --immediate --quiet add cluster vaerun >/dev/null
    pid_of slurmctld >/dev/null || slurmctld -i 2>>"$folder/log/slurmctld.log"
    pid_of slurmd >/dev/null || slurmd -N "$host" 2>>"$folder/log/slurmd.log"
    until_ok ready
    echo "export SLURM_CONF=$SLURM_CONF" >"$folder/env"
    echo "up: $(sinfo --noheader); . $folder/env"
}

configure() {
    # slurmdbd reads slurmdbd.conf next to SLURM_CONF
    (umask 077 && cat >"$folder/slurmdbd.conf") <<EOF
AuthType=auth/munge
AuthInfo=socket=$socket
CommunicationParameters=NoInAddrAny
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$port_dbd
SlurmUser=root
PidFile=$folder/run/slurmdbd.pid
LogFile=$folder/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$port_sql
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounting
EOF
    # cred_expire: how long a requeued job waits before it restarts (two minutes by default).
    cat >"$SLURM_CONF" <<EOF
ClusterName=vaerun
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port_ctld
SlurmdPort=$port_slurmd
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$port_dbd
AccountingStoragePass=$socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=512
ReturnToService=2
OverTimeLimit=0
KillWait=10
PropagatePrioProcess=1
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/^MemTotal/ {print int($2 / 1280)}' /proc/meminfo) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
}

down() {
    local name pid
    if pid_of slurmctld >/dev/null; then timeout 10 scancel --user="$(id -un)" || true; fi
    for name in slurmd slurmctld slurmdbd mariadbd munged; do
        pid=$(pid_of "$name") || continue
        kill "$pid"
        for _ in $(seq 100); do
            [ "$(pid_of "$name")" = "$pid" ] || continue 2
            sleep 0.1
        done
        echo "slurm_node.sh: $name ($pid) did not end; killed" >&2
        kill -KILL "$pid"
    done
    echo "down: $folder"
}

case $action in
    up | down) "$action" ;;
    *) usage ;;
esac
