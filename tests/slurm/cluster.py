"""A real SLURM on this machine, without systemd: munged, slurmctld and one or two slurmd, as root,
with all their files in one folder.

Jobs of partition `low` are requeued when `high` wants their node.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=5
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
"""
PARTITIONS = """PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why no SLURM can be started here; "" if it can."""
    lacking = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    return "" if os.geteuid() == 0 else "only root can start SLURM"


class Cluster:
    """The daemons, and the environment in which the commands of SLURM find them."""

    def __init__(self, folder: Path, nodes: int = 1, cpus: int = 8) -> None:
        self.folder, host = folder, socket.gethostname().split(".")[0]
        self.names = [host] if nodes == 1 else [f"n{i}" for i in range(nodes)]
        for name in ("state", *(f"spool-{n}" for n in self.names)):
            (folder / name).mkdir()
        folder.chmod(0o755)  # others must reach the socket
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = _free_ports(1 + nodes)
        text = CONF.format(host=host, folder=folder, ports=ports)
        for name, port in zip(self.names, ports[1:], strict=True):
            text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            text += f" CPUs={cpus} RealMemory=1000 State=UNKNOWN\n"
        (folder / "slurm.conf").write_text(text + PARTITIONS)
        self.environment = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": PATH}
        files = {n: f"--{n}={folder}/munge.{n}" for n in ("socket", "pid-file", "log-file")}
        self.run(
            "munged", "--force", f"--key-file={key}", f"--seed-file={folder}/seed", *files.values()
        )
        self.start_controller()
        for name in self.names:
            self.run("slurmd", "-N", name)
        self.wait_for(lambda: self.run("sinfo", "-h", "-o", "%T").split() == ["idle"])

    def run(self, *command: str) -> str:
        """What a command prints; CalledProcessError if it fails."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def start_controller(self) -> None:
        """Start slurmctld, which reads the state that an earlier one has left."""
        self.run("slurmctld")

    def kill_controller(self) -> None:
        """End slurmctld as a crash would, but not before it has saved what it knows: it may wait
        for 5 s, and forgets jobs that are younger.
        """
        time.sleep(6)
        pid = int((self.folder / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        self.wait_for(lambda: not Path(f"/proc/{pid}").exists())

    def jobs(self) -> dict[str, str]:
        """Job -> its state, of all that this SLURM remembers."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_for(self, condition, seconds: float = 60) -> None:
        """Return when a condition holds; AssertionError with the end of the logs if it does not."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(subprocess.CalledProcessError):
                if condition():
                    return
            time.sleep(0.1)
        logs = [f"{p.name}: {p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log"))]
        raise AssertionError("\n".join(logs))

    def stop(self) -> None:
        """End the jobs and all daemons."""
        with suppress(subprocess.CalledProcessError):
            self.run("scancel", "--me")
            self.wait_for(lambda: not self.run("squeue", "-h"), 20)
        for file in self.folder.glob("*.pid*"):
            with suppress(ProcessLookupError, ValueError, FileNotFoundError):
                os.kill(int(file.read_text()), signal.SIGTERM)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
