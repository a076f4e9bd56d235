"""Is the process that owns a run still alive? Told by a heartbeat tag on the run.

The tag holds time, host, process id and process start time. On the same host the process table answers at
once, so a killed run can be resumed immediately; for another host only the age of the heartbeat is known,
unless the scheduler has begun the owner's job again: then its earlier try is over.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

HEARTBEAT_TAG = "d2v.heartbeat"
# A token of the tracker that opened the run last, which needs no clock, and the try of the job that it is in.
OWNER_TAG = "d2v.owner"
_CLOCK_SLACK_S = 2.0  # process start times are rounded to clock ticks


@dataclass(frozen=True)
class Heartbeat:
    """Who owned a run, and when it last said so (seconds since 1970)."""

    time_s: float
    host: str
    pid_space: str  # two containers may share a host name but never a process table
    pid: int
    started_s: float

    def to_tag(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def now() -> Heartbeat:
        """The heartbeat of this process."""
        host, space = _this_host()
        started = psutil.Process().create_time()
        return Heartbeat(time.time(), host, space, os.getpid(), started)

    @staticmethod
    def from_tag(text: str | None) -> Heartbeat | None:
        """The heartbeat in a tag; ``None`` where there is none or it is not ours."""
        if not text:
            return None
        try:
            return Heartbeat(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def is_this_process(self) -> bool:
        """Whether this very process wrote it."""
        mine = Heartbeat.now()
        same = (self.host, self.pid_space, self.pid) == (mine.host, mine.pid_space, mine.pid)
        return same and abs(self.started_s - mine.started_s) < _CLOCK_SLACK_S

    def is_live(self, stale_after_s: float) -> bool:
        """Whether the owner is alive, as far as this machine can tell."""
        if self.is_elsewhere():
            return time.time() - self.time_s < stale_after_s
        try:
            process = psutil.Process(self.pid)
            # The same id with another start time is another process. One that died but was not yet
            # collected by its parent (a zombie) owns nothing any more.
            same = abs(process.create_time() - self.started_s) < _CLOCK_SLACK_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True

    def is_elsewhere(self) -> bool:
        """Whether this machine's process table knows nothing of the owner."""
        return (self.host, self.pid_space) != _this_host()

    def owner(self) -> str:
        """For messages: where the owner runs and when it was last heard of."""
        age = max(0, round(time.time() - self.time_s))
        return f"process {self.pid} on {self.host}, last heard of {age} s ago"


@dataclass(frozen=True)
class JobTry:
    """One start of a job that its scheduler begins again when a machine is lost, never twice at a time."""

    job: str  # its id at the scheduler
    start: str  # differs from try to try

    @staticmethod
    def own(ray_session: str | None = None) -> JobTry | None:
        """This process's: Slurm's job with its restarts, or Ray's submitted job with its cluster."""
        if slurm := os.environ.get("SLURM_JOB_ID"):
            name = f"slurm {os.environ.get('SLURM_CLUSTER_NAME', '')} {slurm}"
            return JobTry(name, os.environ.get("SLURM_RESTART_COUNT", "0"))
        submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata") or {}
        if ray_session and (name := submitted.get("job_submission_id")):
            return JobTry(f"ray {name}", ray_session)
        return None

    def as_owner(self, token: str) -> str:
        """The text of an owner's tag."""
        return f"{token} {json.dumps(asdict(self), sort_keys=True)}"

    def replaces(self, owner: str | None) -> bool:
        """Whether the owner of a run is an earlier try of this job."""
        try:
            other = JobTry(**json.loads((owner or "").partition(" ")[2]))
        except (ValueError, TypeError):
            return False
        return other.job == self.job and other.start != self.start


def _this_host() -> tuple[str, str]:
    space = Path("/proc/self/ns/pid")
    return socket.gethostname(), os.readlink(space) if space.exists() else ""
