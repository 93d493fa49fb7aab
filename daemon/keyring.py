"""The API keys of the sessions that came by, in memory only, and how much each account may ask at once.

Rule: a job is drawn with the key of its own account or not at all; it never falls back to another.
"""

from datetime import UTC, datetime

from daemon.config import Secret, Settings
from daemon.governor import Governor
from eventlog.values import Account

RUNNING_MAX_DEFAULT = 4  # of one account, and of all together; images per minute start at 5 for the lowest tier


class Keyring:
    """Keys outlive the session that brought them, for jobs do too; the latest limit that a session named counts."""

    def __init__(self) -> None:
        self._keys: dict[Account, Secret] = {}
        self._running_max: dict[Account, int] = {}
        self.governor = Governor(lambda: datetime.now(UTC))

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
        """0 for an account whose key no session has brought since the daemon started, or that OpenAI asked to wait."""
        if not self.can_draw(account) or self.governor.paused(account):
            return 0
        return self._running_max.get(account, RUNNING_MAX_DEFAULT)

    @property
    def total_max(self) -> int:
        """Of all accounts together: 4, or as many as one of them was allowed."""
        return max((RUNNING_MAX_DEFAULT, *self._running_max.values()))
