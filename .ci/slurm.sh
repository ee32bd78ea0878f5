#!/usr/bin/env bash
# Evaluations on a real SLURM cluster of two nodes on this machine: srun, a job array, a pre-emption,
# a killed command. Each must have the rows of one process.
#
# As root, on a machine that can be thrown away, because it writes /etc/slurm:
#   apt-get install slurm-wlm slurmdbd mariadb-server munge && pip install '.[slurm]' && .ci/slurm.sh
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
cd "$work"

cluster() {
  mkdir -p /run/munge /run/mysqld /run/slurm /etc/slurm /var/log/slurm /var/spool/slurm{ctld,d.n1,d.n2}
  chown munge: /run/munge
  chown mysql: /run/mysqld
  chown slurm: /run/slurm /var/log/slurm /var/spool/slurmctld
  pgrep -x munged > /dev/null || su -s /bin/sh munge -c /usr/sbin/munged
  pgrep -x mariadbd > /dev/null || (mariadbd-safe --user=mysql --bind-address=127.0.0.1 > maria.log 2>&1 &)
  until mysqladmin ping > /dev/null 2>&1; do sleep 1; done
  mysql -e "create database if not exists slurm_acct_db;
    create user if not exists slurm@localhost identified by 'x'; grant all on slurm_acct_db.* to slurm@localhost"
  printf '%s\n' AuthType=auth/munge DbdHost=localhost SlurmUser=slurm StorageType=accounting_storage/mysql \
    StorageUser=slurm StoragePass=x StorageLoc=slurm_acct_db PidFile=/run/slurm/slurmdbd.pid > /etc/slurm/slurmdbd.conf
  chown slurm: /etc/slurm/slurmdbd.conf
  chmod 600 /etc/slurm/slurmdbd.conf
  cat > /etc/slurm/slurm.conf <<CONF
ClusterName=here
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd.%n
SlurmdPidFile=/run/slurmd.%n.pid
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
NodeName=n[1-2] NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES State=UP PriorityTier=1
PartitionName=high Nodes=n[1-2] State=UP PriorityTier=10
CONF
  pgrep -x slurmdbd > /dev/null || slurmdbd
  until sacctmgr -n show cluster > /dev/null 2>&1; do sleep 1; done
  pgrep -x slurmctld > /dev/null || slurmctld
  pgrep -x slurmd > /dev/null || { slurmd -N n1; slurmd -N n2; }
  until [ "$(sinfo -h -p low -t idle -o %D)" = 2 ]; do sleep 1; done
}

evaluate() {  # RUN, then further options
  robust eval --model vmamba-pico --model resnet-pico --transform paper21 --transform imagenet-c \
    --severity 3 --device cpu --out "$@" > /dev/null
}

array() { evaluate "$1" --engine slurm --slurm partition=low,array=2,cpus=2,time=10; }

same() {  # RUN: its rows are those of one process
  diff -r one/predictions "$1/predictions"
  echo "passed: $1"
}

cluster
evaluate one
srun -N2 -n2 --cpus-per-task=2 bash -c "$(declare -f evaluate); evaluate of-srun"
same of-srun
array of-array
same of-array
array pre-empted &
until [ -d pre-empted/predictions ]; do sleep 1; done
sbatch --partition=high --nodes=2 --exclusive --output=/dev/null --wrap "sleep 5"
wait $!
grep -q "DUE TO PREEMPTION" pre-empted/slurm/*.err  # else nothing was tested
same pre-empted
(array killed) &
until [ -d killed/predictions ]; do sleep 1; done
pkill -KILL -f -- "--out killed"
array killed
same killed
rm -r "$work"
