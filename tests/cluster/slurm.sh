#!/bin/sh
# A Slurm of one's own on this host: two nodes by name, two slots each, its files in a folder that is thrown away. Debian: slurmctld slurmd munge.
#     slurm.sh start FOLDER [PORT]     then: export SLURM_CONF=FOLDER/slurm.conf; sinfo
#     slurm.sh stop FOLDER
set -eu
PATH="$PATH:/usr/sbin:/sbin"
folder=$(readlink -f "$2")
port=${3:-27817}  # and the two above it
host=$(hostname -s)

start() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null || { echo "slurm.sh: $program is missing: apt-get install slurmctld slurmd slurm-client munge" >&2; exit 3; }
    done
    mkdir -p "$folder/state" "$folder/node1" "$folder/node2"
    chmod 755 "$folder"
    (umask 077; head -c 128 /dev/urandom > "$folder/munge.key")
    # --force: the folder lies in /tmp, into which others may write
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    cat > "$folder/slurm.conf" << END
ClusterName=lowres
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
SlurmctldPort=$port
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
StateSaveLocation=$folder/state
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdLogFile=$folder/slurmd-%n.log
SlurmdSpoolDir=$folder/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# A job past its memory is killed by what its processes use, looked at each second; one past its time, at once.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
OverTimeLimit=0
KillWait=2
InactiveLimit=0
SlurmdTimeout=20
SchedulerParameters=sched_interval=2,batch_sched_delay=1
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
END
    slurmctld -c -f "$folder/slurm.conf"
    slurmd -N node1 -f "$folder/slurm.conf"
    slurmd -N node2 -f "$folder/slurm.conf"
    export SLURM_CONF="$folder/slurm.conf"
    for _ in $(seq 60); do
        [ "$(sinfo -h -t idle -o %D 2> /dev/null)" = 2 ] && exit 0
        sleep 0.5
    done
    echo "slurm.sh: the nodes do not come up; see $folder/*.log" >&2
    exit 1
}

stop() {
    SLURM_CONF="$folder/slurm.conf" scancel -u "$(id -un)" 2> /dev/null || true
    for daemon in slurmd-node1 slurmd-node2 slurmctld munged; do
        [ -f "$folder/$daemon.pid" ] || continue
        pid=$(cat "$folder/$daemon.pid")
        kill "$pid" 2> /dev/null || continue
        for _ in $(seq 40); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.25
        done
    done
}

"$1"
