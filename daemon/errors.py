"""What the daemon says no with.

Refused (tools.errors)   a rule: the sentence is shown to whoever asked; nothing has happened
BadConfiguration         a setting cannot be understood; the session is refused with the sentence
AlreadyRunning           another daemon holds this home; the newcomer leaves quietly
NotRunning               the command line found no daemon
EventLogError            (eventlog.errors) broken: ends the daemon
"""

from tools.errors import Refused

__all__ = ["AlreadyRunning", "BadConfiguration", "NotRunning", "Refused"]


class BadConfiguration(Exception):
    pass


class AlreadyRunning(Exception):
    pass


class NotRunning(Exception):
    pass
