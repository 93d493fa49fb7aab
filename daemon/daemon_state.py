"""What is told of the daemon itself, at every door."""

from daemon.results import Result


class Pause(Result, frozen=True, kw_only=True):
    """OpenAI asked the key with this fingerprint to wait until then (UTC), and all its pictures do."""

    key: str
    until: str
    reason: str


class Status(Result, frozen=True, kw_only=True):
    software: str
    pid: int
    home: str
    started_at: str
    log_position: int
    head_hash: str
    jobs_pending: int
    jobs_running: int
    sessions: int
    log_full: bool
    index_stale: bool
    waiting_keys: tuple[Pause, ...] = ()


class Stopping(Result, frozen=True, kw_only=True):
    message: str
