"""The API keys of the sessions that came by, in memory only, and how many pictures each account may draw at once.

Rule: a job is drawn with the key of its own account or not at all; it never falls back to another.
"""

from daemon.config import Secret, Settings
from eventlog.values import Account

RUNNING_MAX_DEFAULT = 4  # images per minute start at 5 for the lowest tier of organisations


class Keyring:
    """Keys outlive the session that brought them, for jobs do too; the latest limit that a session named counts."""

    def __init__(self) -> None:
        self._keys: dict[Account, Secret] = {}
        self._running_max: dict[Account, int] = {}

    def admit(self, settings: Settings) -> bool:
        """True if waiting jobs may now be able to start."""
        if not settings.can_draw:
            return False
        if settings.max_concurrent is not None:
            self._running_max[settings.account] = settings.max_concurrent
        if settings.key is not None:
            self._keys[settings.account] = settings.key
        return True

    def key(self, account: Account) -> Secret | None:
        return self._keys.get(account)

    def can_draw(self, account: Account) -> bool:
        return account.backend == "offline" or account in self._keys

    def running_max(self, account: Account) -> int:
        """0 for an account whose key no session has brought since the daemon started."""
        return self._running_max.get(account, RUNNING_MAX_DEFAULT) if self.can_draw(account) else 0
