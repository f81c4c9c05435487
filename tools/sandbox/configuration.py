"""The files of a sandbox: slurm.conf, slurmdbd.conf, env.sh and the namespaces' hosts."""

from __future__ import annotations

import shlex
import socket

from sandbox.settings import NODES, Settings, user_name

SLURM_CONF = """\
ClusterName=sandbox
SlurmctldHost={hostname}({controller})
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.own-pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdPidFile={directory}/%n/slurmd.own-pid
SlurmdLogFile={directory}/%n/slurmd.log
SlurmdSpoolDir={directory}/%n/spool

# A munge of our own, so that the machine's is not touched. A requeued job is held until its old credential has
# expired (cred_expire, 120 s unless told).
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5

# No systemd, no cgroups: this must run in a container too.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{task_plugin}
MpiDefault=none
JobAcctGatherType=jobacct_gather/none

# Nodes may have more CPUs than the machine; a node that was down serves again as soon as its slurmd is back.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10

# Seconds matter in tests: look for jobs to start at once and every second, not every minute.
SchedulerParameters=sched_min_interval=100000,sched_interval=1,batch_sched_delay=0,bf_interval=1,default_queue_depth=1000
EpilogMsgTime=0
KillWait=8
MaxArraySize=2001

# A job in `high` takes the nodes of jobs in `low`; these go back to the queue. Batch scripts are signalled too,
# so that a script can forward the signal or note it.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1

{accounting}
{nodes}
PartitionName=DEFAULT Nodes={names} MaxTime=INFINITE State=UP
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 Default=YES
PartitionName=low0 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 Default=NO
PartitionName=high PriorityTier=10 PreemptMode=OFF GraceTime=0 Default=NO
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={controller}
AccountingStoragePort={port}
# Not a password: the munge that speaks to slurmdbd.
AccountingStoragePass={directory}/munge.socket
"""

NODE = "NodeName={node} NodeHostname={hostname} NodeAddr={address} Port={port} CPUs={cpus} RealMemory={memory_mb}"

# Nothing uses cgroups, yet slurmd looks for them when it starts; told which kind it does not look, and starts where
# there are none (in a namespace, in a container).
CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"

# MariaDB listens on a Unix socket alone (MYSQL_UNIX_PORT in slurmdbd's environment) in a directory that only its
# owner may enter, so it needs no password.
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
DbdHost=localhost
DbdAddr={controller}
DbdPort={port}
SlurmUser={user}
PidFile={directory}/slurmdbd.own-pid
LogFile={directory}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct
"""

ENV_SH = """\
export SLURM_CONF={slurm_conf}
export SLURM_SANDBOX_PREFIX={prefix}   # put $SLURM_SANDBOX_PREFIX before sbatch, srun, squeue ...
"""


def write_configuration(settings: Settings) -> None:
    """Write all files into the sandbox's directory."""
    settings.slurm_conf.write_text(slurm_conf(settings))
    (settings.directory / "cgroup.conf").write_text(CGROUP_CONF)
    (settings.directory / "env.sh").write_text(env_sh(settings))
    if settings.accounting:
        path = settings.directory / "slurmdbd.conf"
        path.touch(mode=0o600)  # slurmdbd refuses to start when others may read it
        path.write_text(slurmdbd_conf(settings))


def slurm_conf(settings: Settings) -> str:
    controller = settings.addresses[NODES[0]]
    accounting = ACCOUNTING.format(
        controller=controller, port=settings.ports["slurmdbd"], directory=settings.directory
    )
    return SLURM_CONF.format(
        hostname=hostname(settings, NODES[0]),
        controller=controller,
        controller_port=settings.ports["slurmctld"],
        user=user_name(),
        directory=settings.directory,
        task_plugin=settings.task_plugin,
        accounting=accounting if settings.accounting else "",
        nodes="\n".join(node_line(settings, node) for node in NODES),
        names=",".join(NODES),
    )


def node_line(settings: Settings, node: str) -> str:
    return NODE.format(
        node=node,
        hostname=hostname(settings, node),
        address=settings.addresses[node],
        port=settings.ports[node],
        cpus=settings.cpus,
        memory_mb=settings.memory_mb,
    )


def hostname(settings: Settings, node: str) -> str:
    """The name of the host that a node's jobs see: its own in a namespace, else the machine's."""
    return node if settings.namespaces else socket.gethostname()


def slurmdbd_conf(settings: Settings) -> str:
    return SLURMDBD_CONF.format(
        directory=settings.directory,
        controller=settings.addresses[NODES[0]],
        port=settings.ports["slurmdbd"],
        user=user_name(),
    )


def env_sh(settings: Settings) -> str:
    prefix = shlex.quote(shlex.join(settings.prefix))
    return ENV_SH.format(slurm_conf=shlex.quote(str(settings.slurm_conf)), prefix=prefix)


def hosts(settings: Settings, node: str) -> str:
    """/etc/hosts of a node's namespace; the machine's own name is the node's address there."""
    names = [f"{settings.addresses[other]} {other}" for other in NODES]
    return "\n".join(["127.0.0.1 localhost", *names, f"{settings.addresses[node]} {socket.gethostname()}", ""])
