"""Jobs as tasks of the MCP extension io.modelcontextprotocol/tasks: a drawing call is answered at once, and asked after later.

Rule: a task is its job and nothing besides, so it lives as long as the job does, through every restart. What the call
wanted in its answer stands in the task's id: the log need not know what a client wants to be shown.

Source: ext-tasks specification 2026-07-28, github.com/modelcontextprotocol/ext-tasks.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon import telling
from daemon.config import Settings
from daemon.errors import Refused
from daemon.results import JobReport
from eventlog.values import JobState

EXTENSION = "io.modelcontextprotocol/tasks"
POLL_INTERVAL_MS = 2000  # a picture takes 5 s to 5 minutes
_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:\.(b?t?))?")
_STATUS: Mapping[str, str] = {
    JobState.PENDING.value: "working",
    JobState.RUNNING.value: "working",
    JobState.CANCELLED.value: "cancelled",
}
"""Of what is not here the result tells the rest: the extension knows no failure of a tool."""


class Task(NamedTuple):
    """`picture` and `thumbnail`: what comes with the result."""

    job_id: str
    picture: bool
    thumbnail: bool

    @property
    def id(self) -> str:
        wanted = "b" * self.picture + "t" * self.thumbnail
        return f"{self.job_id}.{wanted}" if wanted else self.job_id


def task_of(job_id: str, given: Mapping[str, Any], settings: Settings) -> Task:
    """The task of a call with these arguments, which were found to be sound."""
    thumbnail = telling.wants_thumbnail(settings, given.get("include_thumbnail"))
    return Task(job_id, bool(given.get("return_base64")), thumbnail)


def parse(task_id: str) -> Task:
    """
    Raises:
        Refused: no task has such an id.
    """
    found = _ID.fullmatch(task_id)
    if found is None:
        raise Refused(
            f"There is no task {task_id[:64]!r}; its id is the one that the drawing call answered with.", code="no_such_task"
        )
    wanted = found[2] or ""
    return Task(found[1], "b" in wanted, "t" in wanted)


def is_over(report: JobReport) -> bool:
    return _STATUS.get(report.state, "completed") != "working"


def told(task: Task, report: JobReport, result: Mapping[str, Any]) -> dict[str, Any]:
    """A task as it stands. `result` is that of the tool, and is told when there is no more to come."""
    status = _STATUS.get(report.state, "completed")
    said = {
        "taskId": task.id,
        "status": status,
        "statusMessage": report.message,
        "createdAt": report.created_at,
        "lastUpdatedAt": report.updated_at,
        "ttlMs": None,
        "pollIntervalMs": POLL_INTERVAL_MS,
    }
    return {**said, "result": dict(result)} if status == "completed" else said
