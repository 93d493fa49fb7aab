"""Forgetting by the real program: afterwards no byte below its home tells what was drawn, whenever it was killed.

`python -m tests.test_forget MOMENT` is the daemon that takes SIGKILL at that moment of its first forgetting.
"""

import base64
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import cli
from daemon.arguments import schema
from daemon.errors import NotRunning
from daemon.operations import OPERATIONS
from eventlog.audit import verify
from eventlog.disk import Disk
from eventlog.forgetting import NO_WORDS
from eventlog.index import Index
from eventlog.log import EventLog
from eventlog.searching import folded
from eventlog.values import JobId
from tests.die_at import after_append_of, die
from tests.program import Program, running
from tests.standin import Request, StandIn
from tests.tools.pictures_for_tests import picture

WORDS = {"prompt", "query", "idempotency_key", "output_path", "image_path", "directory", "path", "reference_images", "style"}
MARKER = "Quittenkompott-8f2c"
KEY = "sk-test-canary-0123456789"
ROOT = Path(__file__).resolve().parent.parent


def settings(home: Path, url: str) -> dict[str, str]:
    (home / "in").mkdir(exist_ok=True)
    return {
        "IMAGED_BACKEND": "openai",
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": url,
        "OPENAI_IMAGE_INPUT_DIR": str(home / "in"),
        "OPENAI_IMAGE_EMBED_METADATA": "sidecar",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[Program, StandIn]]:
    with StandIn() as standin, running(tmp_path, **settings(tmp_path, standin.url)) as program:
        yield program, standin


def draw_secret(program: Program) -> dict[str, Any]:
    """The marker stands in the prompt, in file names, in an inline source's bytes, in a key, and in what was refused."""
    source = picture("png", 64, 64)
    (program.home / "in" / f"{MARKER}-in.png").write_bytes(source)
    inline = base64.b64encode(picture("jpeg") + MARKER.encode()).decode()
    prompt = f"A still life: {MARKER}, 逆光の{MARKER}"
    refused = program.ask("edit_image", prompt=prompt, reference_image_path=f"{MARKER}-in.png", size="13x13")
    assert "refused" in refused
    answer = program.ask(
        "start_generation_job",
        tool_name="edit_image",
        prompt=prompt,
        reference_image_path=f"{MARKER}-in.png",
        reference_images=[f"data:image/jpeg;base64,{inline}"],
        output_path=f"{MARKER}/{MARKER}.png",
        idempotency_key=f"key {MARKER}",
        size="1024x1024",
        quality="low",
    )
    assert "result" in answer, answer
    job = answer["result"]["job_id"]
    program.ask("wait_for_jobs", job_ids=[job], after=10**6, wait_seconds=30)
    program.ask("list_history", query=MARKER.upper())
    done: dict[str, Any] = program.ask("get_job_result", job_id=job)["result"]
    assert done["state"] == "completed" and done["images"][0]["sidecar"], done
    return done


def where_it_stands(home: Path, *texts: str) -> list[str]:
    """Every file below the home that holds one of these, whole or as the index folds it, or has it in its name."""
    found = []
    for path in sorted(home.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        for text in texts:
            if any(form.encode() in data for form in (text, folded(text), text.upper())) or text in path.name:
                found.append(f"{path.relative_to(home)}: {text}")
    return found


def stored(program: Program) -> list[str]:
    return sorted(path.name for path in program.places.store.glob("??/*"))


def test_a_forgotten_generation_is_nowhere_below_the_home_and_the_chain_holds(program: tuple[Program, StandIn]) -> None:
    house, standin = program
    kept = house.ask("generate_image", prompt="a badger", size="1024x1024", quality="low")["result"]
    before = stored(house)
    secret = draw_secret(house)
    assert len(stored(house)) == len(before) + 3, "two sources and the picture"
    assert len(where_it_stands(house.places.home, MARKER)) >= 2
    answer = house.ask("forget", uuid=secret["job_id"])
    result = answer["result"]
    assert (result["words"], result["blobs_removed"], result["files_removed"], result["kept"]) == (4, 3, [], []), result
    assert "gone from the log" in answer["text"] and MARKER not in json.dumps(answer)
    assert where_it_stands(house.places.home, MARKER) == [] and stored(house) == before
    assert Path(secret["images"][0]["path"]).exists() and Path(secret["images"][0]["sidecar"]).exists(), "not asked for"
    found = verify(house.places.events)
    assert found.fault is None and [one.job for one in found.forgotten] == [secret["job_id"]]
    told = house.ask("get_history_by_uuid", uuid=secret["job_id"])["result"]
    assert told["prompt"] is None and told["images"][0]["path"] is None and told["cost"] == secret["cost"]
    assert told["sources"][0]["name"] == "(forgotten)"
    assert house.ask("list_history", query="badger")["result"]["total"] == 1
    assert house.ask("list_history")["result"]["total"] == 2
    assert house.ask("get_history_by_uuid", uuid=kept["job_id"])["result"]["prompt"] == "a badger"
    positions = [commit.position for commit in house.log()]
    again = house.ask("forget", uuid=secret["job_id"])["result"]
    assert "already" in again["message"] and again["forgotten_at"] == result["forgotten_at"] and again["words"] == 0
    house.end()
    with running(house.home, **settings(house.home, standin.url)) as anew:
        assert [commit.position for commit in anew.log()][: len(positions)] == positions
        assert anew.ask("list_history")["result"]["total"] == 2
        assert anew.ask("generate_image", prompt="after all", size="1024x1024", quality="low")["result"]["state"] == "completed"
    assert where_it_stands(house.places.home, MARKER) == []


def test_with_files_the_saved_pictures_go_too_but_not_what_somebody_has_changed(program: tuple[Program, StandIn]) -> None:
    house, _ = program
    secret = draw_secret(house)
    path, sidecar = Path(secret["images"][0]["path"]), Path(secret["images"][0]["sidecar"])
    sidecar.write_bytes(b"my own notes")
    result = house.ask("forget", uuid=secret["job_id"], files=True)["result"]
    assert result["files_removed"] == [str(path)] and not path.exists() and sidecar.exists()
    assert len(result["kept"]) == 1 and str(sidecar) in result["kept"][0] and "not what was saved" in result["kept"][0]
    again = house.ask("forget", uuid=secret["job_id"], files=True)["result"]
    assert again["files_removed"] == [] and "forgotten" in again["kept"][0]


def test_a_source_that_another_generation_started_from_is_kept_for_it(program: tuple[Program, StandIn]) -> None:
    house, _ = program
    (house.home / "in" / "fox.png").write_bytes(picture("png", 64, 64))
    made = [
        house.ask("edit_image", prompt=text, reference_image_path="fox.png", size="1024x1024", quality="low")["result"]
        for text in ("one", "two")
    ]
    source = made[0]["sources"][0]["sha256"]
    assert "result" in house.ask("get_metadata_from_image", image_path="edited_image.png")
    house.ask("list_history", query="e")
    first = house.ask("forget", uuid=made[0]["job_id"])["result"]
    assert source in stored(house) and any(source in why for why in first["kept"])
    assert first["words"] == 2, "its own, and nobody's who has used a default name or looked for a letter"
    second = house.ask("forget", uuid=made[1]["job_id"])["result"]
    assert source not in stored(house) and second["kept"] == []


def test_short_words_are_not_looked_for_where_only_a_choice_or_a_figure_can_stand() -> None:
    names = {"n"}  # of a picture, at the control door
    for operation in OPERATIONS.values():
        for name, shape in schema(operation.arguments)["properties"].items():
            choices = [choice for choice in shape.get("anyOf", [shape]) if choice.get("type") != "null"]
            if not any(choice.get("type") == "array" or choice.get("type") == "string" for choice in choices):
                names.add(name)
            assert "enum" not in str(shape) or name in NO_WORDS, name
    assert names <= NO_WORDS
    assert NO_WORDS.isdisjoint(WORDS)


def test_a_failure_is_forgotten_with_its_message(program: tuple[Program, StandIn]) -> None:
    house, standin = program
    standin.will(lambda request: request.error(400, "bad_thing", f"no {MARKER} here"))
    answer = house.ask("generate_image", prompt=f"draw {MARKER}", size="1024x1024", quality="low")["result"]
    assert answer["state"] == "failed" and MARKER in answer["error"]
    assert house.ask("forget", uuid=answer["job_id"])["result"]["words"] == 2
    told = house.ask("get_history_by_uuid", uuid=answer["job_id"])["result"]
    assert (told["error"], told["prompt"], told["error_code"]) == ("", None, answer["error_code"])
    assert where_it_stands(house.places.home, MARKER) == []


def test_what_is_still_being_drawn_or_was_never_asked_is_refused(program: tuple[Program, StandIn]) -> None:
    house, standin = program
    go_on = threading.Event()

    def slow(request: Request) -> None:
        go_on.wait(60)
        request.reply(200, request.good_reply())

    standin.will(slow)
    job = house.ask("start_generation_job", tool_name="generate_image", prompt="slow", quality="low")["result"]["job_id"]
    refused = house.ask("forget", uuid=job)["refused"]
    assert refused["code"] == "not_over" and "wait until it is over" in refused["message"]
    assert house.ask("forget", uuid="01a20000-0000-7000-8000-000000000000")["refused"]["code"] == "no_such_job"
    go_on.set()
    house.ask("wait_for_jobs", job_ids=[job], after=10**6, wait_seconds=30)
    assert house.ask("forget", uuid=job)["result"]["words"] == 2


def before_scrubbing() -> None:
    Index.scrub = lambda self: die()  # type: ignore[method-assign]


def while_the_copy_is_written() -> None:
    pwrite = Disk.pwrite

    def write_half_and_die(self: Disk, fd: int, data: bytes, offset: int) -> None:
        if b'"LogCreated"' in data and b'"WordsForgotten"' in data:  # all of the first segment
            pwrite(self, fd, data[: len(data) // 2], offset)
            die()
        pwrite(self, fd, data, offset)

    Disk.pwrite = write_half_and_die  # type: ignore[method-assign]


def before_the_copy_has_its_name() -> None:
    def die_instead(self: Disk, directory: int, old: str, new: str) -> None:
        if old.startswith("forgetting-"):
            die()
        replace(self, directory, old, new)

    replace = Disk.replace
    Disk.replace = die_instead  # type: ignore[method-assign]


def after_the_copy_has_its_name() -> None:
    forget = EventLog.forget

    def forget_then_die(self: EventLog, lines: Any) -> Any:
        forget(self, lines)
        die()

    EventLog.forget = forget_then_die  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], None]] = {
    "after WordsForgotten": lambda: after_append_of("WordsForgotten"),
    "before the index is scrubbed": before_scrubbing,
    "while the copy is written": while_the_copy_is_written,
    "before the copy has its name": before_the_copy_has_its_name,
    "after the copy has its name": after_the_copy_has_its_name,
}


@pytest.mark.parametrize(
    ("moment", "lose_index"),
    [
        *((moment, False) for moment in MOMENTS),
        ("while the copy is written", True),
    ],
)
def test_a_kill_while_forgetting_is_finished_at_the_next_start(moment: str, lose_index: bool, tmp_path: Path) -> None:
    with StandIn() as standin:
        told = settings(tmp_path, standin.url)
        with running(tmp_path, **told) as program:
            secret = draw_secret(program)
            path = Path(secret["images"][0]["path"])
            program.end()
        doomed = Program(tmp_path, [sys.executable, "-m", "tests.test_forget", moment], **told).start().ready()
        with pytest.raises(NotRunning):
            doomed.ask("forget", uuid=secret["job_id"], files=True)
        doomed.wait_for_end()
        assert where_it_stands(doomed.places.events, MARKER) or moment == "after the copy has its name"
        if lose_index:
            for name in doomed.places.home.glob("index.sqlite*"):
                name.unlink()
        with running(tmp_path, **told) as anew:
            assert where_it_stands(anew.places.home, MARKER) == [] and not path.exists()
            found = verify(anew.places.events)
            assert found.fault is None and [(one.job, one.standing) for one in found.forgotten] == [(JobId(secret["job_id"]), ())]
            again = anew.ask("forget", uuid=secret["job_id"])["result"]
            assert "already" in again["message"]
            assert anew.ask("get_history_by_uuid", uuid=secret["job_id"])["result"]["prompt"] is None
            assert stored(anew) == []


if __name__ == "__main__":
    if len(sys.argv) > 1:
        MOMENTS[sys.argv[1]]()
    sys.exit(cli.main(["serve"]))
