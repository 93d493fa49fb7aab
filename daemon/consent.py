"""How a person says yes to a dear order: in the client's own dialogue, or with a command at a terminal."""

from typing import Annotated

import msgspec

from daemon.approvals import SECONDS_MAX, NeedsApproval
from daemon.arguments import Arguments
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer, Result
from daemon.session import Caller


async def get_consent(house: House, caller: Caller, needs: NeedsApproval) -> None:
    """Asks the person in front of the client, if the client can. Returns when they said yes.

    Raises:
        NeedsApproval: the client cannot ask, or nobody answered.
        Refused: they said no.
    """
    answer = await caller.ask_person(needs.question, needs.approval) if caller.ask_person is not None else None
    if answer is None:
        raise needs
    if not answer:
        raise Refused(
            "The user was asked and did not approve it. Nothing was drawn; do not ask again unless they wish it.",
            code="not_approved",
        )
    house.approvals.approve(needs.approval, "elicitation")


class ApproveOrder(Arguments, frozen=True, kw_only=True):
    code: Annotated[str, msgspec.Meta(max_length=100, description="What the refusal named.")]
    approve: Annotated[bool, msgspec.Meta(description="True approves it; otherwise it is only shown.")] = False


class Approval(Result, frozen=True, kw_only=True):
    question: str
    approved: bool


async def approve_order(house: House, caller: Caller, asked: ApproveOrder) -> Answer:
    """What a person at a terminal says yes to.

    Raises:
        Refused: there is no such question.
    """
    question = house.approvals.text(asked.code)
    if question is None:
        raise Refused(
            f"Nothing waits for an approval with the code {asked.code!r}: it was drawn, or asked for more than "
            f"{SECONDS_MAX / 60:.0f} minutes ago, or before the daemon was started. Ask for the picture again.",
            code="no_such_approval",
            argument="code",
        )
    if asked.approve:
        house.approvals.approve(asked.code, "terminal")
    return Answer(Approval(question=question, approved=asked.approve))
