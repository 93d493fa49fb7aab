"""What the exit status says: the one table that `imaged --help` shows, and which status a code stands for.

Rule: scripts build on it, so a number is never used for anything else. The README has the same table; a test compares them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.results import JobReport

OK, FAILED, USAGE, PARTLY = 0, 1, 2, 3
KEY, BUDGET, MODERATION, RATE_LIMITED, OUTCOME_UNKNOWN = 4, 5, 6, 7, 8
NO_DAEMON, DAEMON_RUNS, WAIT_RAN_OUT, INTERRUPTED = 9, 75, 124, 130

MEANINGS: Mapping[int, str] = {
    OK: "done",
    FAILED: "failed; stderr says why",
    USAGE: "the command line, a file or a setting is at fault",
    PARTLY: "partly: some of several jobs, or fewer pictures than asked for",
    KEY: "no API key, or one that may not do this; or its organization",
    BUDGET: "the budget or the credit at OpenAI is used up",
    MODERATION: "OpenAI's safety system refused it",
    RATE_LIMITED: "OpenAI asked to slow down for longer than we waited",
    OUTCOME_UNKNOWN: "the answer was lost: perhaps billed; see imaged jobs resolve",
    NO_DAEMON: "no daemon runs or stays, or it was stopped during a wait",
    DAEMON_RUNS: "imaged serve: a daemon runs already",
    WAIT_RAN_OUT: "the wait ran out; the job goes on",
    INTERRUPTED: "Ctrl-C or SIGTERM; a job that was ordered goes on",
}

_OF_FAILURES: Mapping[str, int] = {  # codes of tools.failures; whatever is neither here nor in doubt has simply failed
    "invalid_key": KEY,
    "org_unverified": KEY,
    "not_permitted": KEY,
    "model_unavailable": KEY,
    "quota_exhausted": BUDGET,
    "moderation_blocked": MODERATION,
    "rate_limited": RATE_LIMITED,
}
_OF_REFUSALS: Mapping[str, int] = {  # of what was not even begun; `not_permitted` is there a matter of files
    "no_key": KEY,
    "over_budget": BUDGET,
    "bad_settings": USAGE,
    "bad_arguments": USAGE,
    "bad_mask": USAGE,
    "bad_markup": USAGE,
    "bad_picture": USAGE,
    "key_reused": USAGE,
    "model_retired": USAGE,
    "not_a_file": USAGE,
    "too_large": USAGE,
    "too_many_references": USAGE,
}
_USAGE_PREFIXES = ("path_", "unsupported_")


def of_refusal(code: str) -> int:
    return USAGE if code.startswith(_USAGE_PREFIXES) else _OF_REFUSALS.get(code, FAILED)


def of_job(job: "JobReport") -> int:
    """Of one that is over. A lost answer is in doubt until its owner has said what the bill has."""
    match job.state:
        case "completed":
            return PARTLY if len(job.images) < job.requested.count and not job.imported else OK
        case "interrupted" if job.billed == "unknown":
            return OUTCOME_UNKNOWN
        case _:
            return _OF_FAILURES.get(job.error_code, FAILED)


def of_all(statuses: Sequence[int]) -> int:
    """Of several jobs: what all have in common, `PARTLY` where some are done."""
    different = set(statuses)
    if len(different) == 1:
        return statuses[0]
    return PARTLY if different & {OK, PARTLY} else FAILED
