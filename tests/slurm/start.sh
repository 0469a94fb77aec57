#!/usr/bin/env bash
# A Slurm of one node, this machine, without systemd: munged, slurmctld and slurmd with all they write in FOLDER.
# run:     apt-get install slurmctld slurmd slurm-client munge
#          tests/slurm/start.sh FOLDER && export SLURM_CONF=FOLDER/slurm.conf && sinfo
# stop:    kill $(cat FOLDER/*.pid)
set -euo pipefail
[ $# = 1 ] || { echo "usage: tests/slurm/start.sh FOLDER   (as root)" >&2; exit 2; }
mkdir -p "$1"/{state,spool}
folder=$(realpath "$1") host=$(hostname -s)
read -r control worker < <(python3 -c '
import socket
ports = [socket.create_server(("", 0)) for _ in range(2)]
print(*(port.getsockname()[1] for port in ports))')

cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmctldPort=$control
SlurmdPort=$worker
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4
CONF
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 700 "$folder"
chmod 600 "$folder/munge.key"

export SLURM_CONF=$folder/slurm.conf
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld -c
slurmd -c
for _ in $(seq 100); do
  sinfo --noheader --format %t 2>/dev/null | grep -q '^idle$' && exit 0
  sleep 0.2
done
echo "tests/slurm/start.sh: the node did not come up in 20 s; see $folder/*.log" >&2
exit 1
