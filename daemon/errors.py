"""What the daemon says no with.

Refused (tools.errors)   a rule: the sentence is shown to whoever asked; nothing has happened
BadConfiguration         a setting cannot be understood; the session is refused with the sentence
AlreadyOrdered           the same order is under way; its asker gets that job, and knows
Unapproved               so dear an order needs a person's yes; whoever places it asks for that
AlreadyRunning           another daemon holds this home; the newcomer leaves quietly
NotRunning               the command line found no daemon
EventLogError            (eventlog.errors) broken: ends the daemon
"""

from eventlog.values import JobId
from tools.errors import Refused

__all__ = ["AlreadyOrdered", "AlreadyRunning", "BadConfiguration", "NotRunning", "Refused", "Unapproved"]


class BadConfiguration(Exception):
    pass


class AlreadyOrdered(Exception):
    def __init__(self, job: JobId) -> None:
        super().__init__(f"job {job} is the same order")
        self.job = job


class Unapproved(Exception):
    """The question is for a person."""


class AlreadyRunning(Exception):
    pass


class NotRunning(Exception):
    pass
