"""kill -9 at every moment of a picture's life: nothing acknowledged is missing, nothing is paid twice."""

import sys
import threading
from pathlib import Path

import pytest

from daemon.errors import NotRunning
from eventlog.audit import verify
from eventlog.values import Sha256, digest
from tests.die_at import MOMENTS
from tests.program import Program, running, wait_until
from tests.standin import Request, StandIn, draw
from tools.store import Store

PROMPT = "A fox in the snow"
NEVER_REQUESTED = {"while JobRequested is appended"}
NEVER_SENT = {"after JobRequested", "after JobStarted", "while AttemptStarted is appended"}
OUTCOME_UNKNOWN = {"after AttemptStarted", "while the reply is read", "while the spool is written"}


def settings(url: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-test-canary-0123456789", "OPENAI_BASE_URL": url}


def one_life(home: Path, moment: str) -> None:
    dead: list[Program] = []

    def half(request: Request) -> None:
        request.reply_half_then(dead[0].kill)

    with StandIn(*([half] if moment == "while the reply is read" else [draw])) as api:
        program = Program(home, [sys.executable, "-m", "tests.die_at", moment], **settings(api.url))
        program.environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        dead.append(program.start().ready())
        asking = threading.Thread(target=ask_and_be_left, args=(program, PROMPT), daemon=True)
        asking.start()
        program.wait_for_end()
        asking.join(20)
        assert not asking.is_alive()
        acknowledged = [commit.position for commit in program.log()]
        after_the_crash(home, api, moment, acknowledged)


def ask_and_be_left(program: Program, prompt: str) -> None:
    with pytest.raises(NotRunning):
        program.ask("generate_image", prompt=prompt, output_path="fox.png", quality="low", size="1024x1024")


def after_the_crash(home: Path, api: StandIn, moment: str, acknowledged: list[int]) -> None:
    with running(home, **settings(api.url)) as program:
        assert [commit.position for commit in program.log()][: len(acknowledged)] == acknowledged
        expected = "none" if moment in NEVER_REQUESTED else "interrupted" if moment in OUTCOME_UNKNOWN else "completed"

        def settled() -> bool:
            jobs = program.ask("list_jobs")["result"]["jobs"]
            return [job["state"] for job in jobs] == ([] if expected == "none" else [expected])

        wait_until(settled, f"the job to be {expected}")
        attempts = {
            event.client_request_id: event
            for commit in program.log()
            for event in commit.events
            if type(event).__name__ == "AttemptStarted"
        }
        seen = [request.headers["x-client-request-id"] for request in api.requests]
        assert len(set(seen)) == len(seen), "an attempt was sent twice"
        assert set(seen) <= set(attempts), "a request left without a durable fact"
        for request in api.requests:
            assert digest(request.body) == attempts[request.headers["x-client-request-id"]].body_sha256
        files = sorted(path.name for path in program.pictures.glob("*")) if program.pictures.exists() else []
        assert files == (["fox.png"] if expected == "completed" else [])
        if expected == "completed":
            assert len(api.requests) == 1
            (job,) = program.ask("list_history")["result"]["generations"]
            (image,) = program.ask("get_history_by_uuid", uuid=job["job_id"])["result"]["images"]
            assert digest(Path(image["path"]).read_bytes()) == image["sha256"]
            assert Store.open(program.places.store).get(Sha256(image["original_sha256"]))
        found = verify(program.places.events)
        assert found.fault is None, found.fault


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_loses_nothing_and_pays_nothing_twice(moment: str, tmp_path: Path) -> None:
    one_life(tmp_path, moment)
