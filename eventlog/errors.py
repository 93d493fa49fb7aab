"""What can go wrong with the log.

EventLogError            broken: our disk or our log; ends the daemon
  LogLocked              another daemon holds the directory
  LogCorrupt             something durable is damaged; nothing was changed
  LogTooNew              written by a newer version; upgrade, do not repair
  LogDead                a write or sync failed; nothing more is appended in this process
LogFull                  refused: no room on the disk; the log stays good
IndexUnavailable         refused: the read model cannot be read now; the log is not affected
IllegalTransition        bug: a fact that may not follow; never caught
"""


class EventLogError(Exception):
    """The daemon cannot go on with this log."""


class LogLocked(EventLogError):
    pass


class LogCorrupt(EventLogError):
    """Names the position and byte of the first fault. The log was not touched."""

    def __init__(self, sentence: str, *, position: int, offset: int) -> None:
        super().__init__(sentence)
        self.position = position
        self.offset = offset


class LogTooNew(EventLogError):
    pass


class LogDead(EventLogError):
    pass


class LogFull(Exception):
    """Nothing of the batch was kept; it may be appended again once there is room."""


class IndexUnavailable(Exception):
    pass


class IllegalTransition(Exception):
    pass
