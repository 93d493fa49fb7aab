"""Orders that may cost more than IMAGED_CONFIRM_USD: a person says yes, at the client's own dialogue or at a terminal.

Rule: in memory, and an approval is for one very order, once, and not for long. The code that stands for it cannot be
guessed and says nothing; whoever comes with another gets another question, never a picture.
"""

import hmac
import secrets
from typing import NamedTuple

import trio

from daemon.errors import Refused
from daemon.untold import Sameness

SECONDS_MAX = 900.0  # from the question to the picture
KEPT_MAX = 100  # questions; the oldest is forgotten first
CODE_BYTES = 8


class NeedsApproval(Refused):
    """`question` is for a person, `approval` is the code by which the answer is known."""

    def __init__(self, question: str, approval: str) -> None:
        super().__init__(
            f"{question} A person has to approve it: run `imaged approve {approval}` in a terminal, then ask again for exactly "
            f"the same within {SECONDS_MAX / 60:.0f} minutes. Nothing has been drawn.",
            code="needs_approval",
        )
        self.question, self.approval = question, approval


class _Question(NamedTuple):
    order: Sameness
    text: str
    until: float
    approved_by: str = ""


class Approvals:
    def __init__(self) -> None:
        self._questions: dict[str, _Question] = {}

    def ask(self, order: Sameness, text: str) -> str:
        """The code of this question, the same as long as it is open."""
        self._forget()
        for code, question in self._questions.items():
            if question.order == order:
                return code
        code = secrets.token_hex(CODE_BYTES)
        self._questions[code] = _Question(order, text, trio.current_time() + SECONDS_MAX)
        return code

    def text(self, code: str) -> str | None:
        """The open question with this code."""
        self._forget()
        return next((question.text for known, question in self._questions.items() if _same(known, code)), None)

    def approve(self, code: str, by: str) -> None:
        """An unknown code approves nothing."""
        if self.text(code) is not None:
            self._questions[code] = self._questions[code]._replace(approved_by=by)

    def take(self, order: Sameness) -> str:
        """Who approved this order, empty if nobody did. From here on it needs another approval."""
        self._forget()
        for code, question in tuple(self._questions.items()):
            if question.order == order and question.approved_by:
                del self._questions[code]
                return question.approved_by
        return ""

    def _forget(self) -> None:
        now = trio.current_time()
        self._questions = {code: question for code, question in self._questions.items() if question.until > now}
        while len(self._questions) >= KEPT_MAX:
            del self._questions[next(iter(self._questions))]


def _same(known: str, code: str) -> bool:
    return hmac.compare_digest(known.encode(), code.encode("utf-8", "replace"))
