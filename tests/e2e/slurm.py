"""A SLURM of one node on this machine: munge, controller and node, all in a folder of their own."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
IS_HERE = all(map(shutil.which, PROGRAMS))
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
KillWait=2
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=60 State=UP
"""


@contextlib.contextmanager
def slurm() -> Iterator[Path]:
    """A cluster whose only node is this machine. Yields the folder of its files."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path is short
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    names = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser()}
    ports = {"controller": free_port(), "node": free_port()}
    cores = len(os.sched_getaffinity(0))
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, cores=cores, **names, **ports))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    files = [f"--{n}-file={folder}/munge.{n}" for n in ("key", "pid", "log", "seed")]
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files]
    with contextlib.ExitStack() as closing:
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemon = subprocess.Popen(command, stdout=out, stderr=out)
            closing.callback(daemon.wait, 20)
            closing.callback(daemon.terminate)
        wait_until_idle(folder)
        yield folder
    os.environ.pop("SLURM_CONF")
    if before:
        os.environ["SLURM_CONF"] = before


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_until_idle(folder: Path) -> None:
    for _ in range(120):
        found = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    said = [f"{file.name}: {file.read_text()[-800:]}" for file in folder.glob("*.out")]
    raise AssertionError("no node became idle: " + "\n".join(said))
