"""A real Slurm on this machine's loopback, from Debian's packages: a controller, virtual nodes, a munge of its own.

    python benchmarks/loopback.py /var/tmp/slurm-loopback --nodes 3 --cpus 2

starts one and says what to type; Ctrl-C ends it. Nothing is installed: `missing` says what is not there. The folder
must be one that other users may enter, since munged runs as another.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munged", "setpriv")
PATIENCE_S = 40.0

# A node that says nothing for ten seconds is down and its jobs are put back; they may start again after five.
CONFIGURATION = """ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/run/spool-%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=600
KillWait=10
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=10
MaxArraySize=2001
NodeName=DEFAULT CPUs={cpus} Boards=1 Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=600 State=UP PriorityTier=10 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=600 State=UP PriorityTier=100
"""


def missing() -> str:
    """Why there can be no Slurm here, or ""."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: apt-get install --no-install-recommends slurm-wlm munge)"
    return "" if os.getuid() == 0 else "a Slurm of several virtual nodes is started by root only"


@dataclass(kw_only=True)
class Loopback:
    """A Slurm that runs as long as the `with` block; commands of Slurm's in this process and its children find it."""

    base: Path
    nodes: int = 2
    cpus: int = 2
    grace_s: int = 0  # between the signal and the end of a job that is preempted

    def __enter__(self) -> Loopback:
        if reason := missing():
            raise RuntimeError(reason)
        shutil.rmtree(self.base, ignore_errors=True)
        for name in ("etc", "munge", "state", "log", "run"):
            (self.base / name).mkdir(parents=True)
        for folder in (self.base, *self.base.iterdir()):
            folder.chmod(0o755)
        self.pids: list[int] = []
        self.before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(self.base / "etc" / "slurm.conf")
        try:
            self._munge()
            self._configure()
            subprocess.run(["slurmctld", "-c"], check=True)
            for i in range(self.nodes):
                self.start_node(i + 1)
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _munge(self) -> None:
        place = self.base / "munge"
        key = place / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for path in (place, key):
            shutil.chown(path, "munge", "munge")
        files = [f"--{name}-file={place / name}" for name in ("key", "pid", "seed", "log")]
        user = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
        subprocess.run([*user, "munged", *files, f"--socket={place / 'socket'}"], check=True)

    def _configure(self) -> None:
        host, ports = socket.gethostname().split(".")[0], list(_free_ports(self.nodes + 1))
        nodes = "\n".join(
            f"NodeName=n{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}" for i, port in enumerate(ports[1:])
        )
        text = CONFIGURATION.format(
            host=host, port=ports[0], base=self.base, cpus=self.cpus, nodes=nodes, grace=self.grace_s
        )
        (self.base / "etc" / "slurm.conf").write_text(text)
        (self.base / "etc" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def start_node(self, number: int) -> None:
        (self.base / "run" / f"spool-n{number}").mkdir(exist_ok=True)
        subprocess.run(["slurmd", "-N", f"n{number}"], check=True)

    def kill_node(self, number: int) -> int:
        """SIGKILL of everything on a node, as a power cut does; how many of its processes were a job's."""
        os.kill(self._pid(f"run/slurmd-n{number}.pid"), signal.SIGKILL)
        marks = (f"SLURMD_NODENAME=n{number}".encode(), f"SLURM_CONF={os.environ['SLURM_CONF']}".encode())
        tasks = [pid for pid, environment in environments() if all(mark in environment for mark in marks)]
        parents = {parent for pid in tasks if (parent := _parent(pid)) and _name(parent) == "slurmstepd"}
        for pid in (*parents, *tasks):
            _kill(pid)
        return len(tasks)

    def stop_node(self, number: int) -> list[int]:
        """SIGSTOP of everything on a node, as a machine that hangs; the processes, which SIGCONT brings back."""
        daemon = self._pid(f"run/slurmd-n{number}.pid")
        marks = (f"SLURMD_NODENAME=n{number}".encode(), f"SLURM_CONF={os.environ['SLURM_CONF']}".encode())
        tasks = [pid for pid, environment in environments() if all(mark in environment for mark in marks)]
        steps = {parent for pid in tasks if (parent := _parent(pid)) and _name(parent) == "slurmstepd"}
        stopped = [daemon, *steps, *tasks]
        for pid in stopped:
            _kill(pid, signal.SIGSTOP)
        return stopped

    def restart_node(self, number: int) -> None:
        """A fresh daemon, for a node whose own may have been given up."""
        _kill(self._pid(f"run/slurmd-n{number}.pid"))
        time.sleep(0.5)
        self.start_node(number)

    def _pid(self, name: str) -> int:
        return int((self.base / name).read_text())

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            answer = subprocess.run(
                ["sinfo", "-h", "-t", "idle", "-o", "%D"], capture_output=True, text=True, check=False
            )
            if answer.stdout.split()[:1] == [str(self.nodes)]:
                return
            time.sleep(0.2)
        raise RuntimeError(f"not all nodes are idle after {PATIENCE_S:.0f} s; look into {self.base}/log")

    def __exit__(self, *_: object) -> None:
        files = [*self.base.glob("run/slurmd-*.pid"), *self.base.glob("run/slurmctld.pid"), self.base / "munge" / "pid"]
        for command in (["scancel", "--full", "--signal=KILL", "--me"], ["scancel", "--me"]):
            subprocess.run(command, capture_output=True, timeout=20, check=False)
        found = [int(path.read_text()) for path in files if path.exists() and path.read_text().strip()]
        for pid in found:
            _kill(pid, signal.SIGTERM)
        until = time.monotonic() + 5
        while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() and _name(pid) for pid in found):
            time.sleep(0.1)
        for pid in found:
            if _name(pid) in ("slurmd", "slurmctld", "munged"):
                _kill(pid)
        if self.before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = self.before
        shutil.rmtree(self.base, ignore_errors=True)


def _free_ports(n: int) -> Iterator[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    yield from [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Every process that can be looked at, with its environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            yield int(path.parent.name), path.read_bytes().split(b"\0")
        except OSError:
            continue


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def _name(pid: int) -> str:
    """Of a process that is no zombie."""
    try:
        head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
    except OSError:
        return ""
    return "" if rest.startswith("Z") else head.partition("(")[2]


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended by itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    with Loopback(base=arguments.base, nodes=arguments.nodes, cpus=arguments.cpus):
        print(f"export SLURM_CONF={os.environ['SLURM_CONF']}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
