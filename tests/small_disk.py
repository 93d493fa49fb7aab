"""What happens on a real file system that is full.

Usage: unshare --user --map-root-user --mount python -m tests.small_disk CASE FOLDER

In a mount namespace of its own, so that it can mount one and nobody else sees it. What is not as it should be raises.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from eventlog.audit import verify
from eventlog.values import digest
from tests.program import Program, altered, wait_until
from tests.standin import Behaviour, Request, StandIn

SIZE_MIB = 160  # with room for the log's reserve and what the log wants to see free before it makes one again
ORDER = {"prompt": "A fox", "quality": "low", "size": "1024x1024"}


class SmallDisk:
    """A tmpfs of its own at `folder`; all that is free in it can be taken and given back."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)], check=True)
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("wb") as ballast:
            free = os.statvfs(ballast.fileno())
            os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize)

    def empty(self) -> None:
        self._ballast.unlink()


def started(home: Path, api: StandIn) -> Program:
    settings = {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": api.url}
    return Program(home, altered("worker.STORE_WAIT_SECONDS = 0.02"), **settings).start().ready()


def filling(disk: SmallDisk, spoilt: Path | None = None) -> Behaviour:
    """Draws, and meanwhile the disk is filled, and a file put where the folder `spoilt` should come to stand."""

    def behave(request: Request) -> None:
        disk.fill()
        if spoilt is not None:
            spoilt.write_text("a file", "utf-8")
        request.reply(200, request.good_reply())

    return behave


def pictures_have_no_room(home: Path) -> None:
    disk = SmallDisk(home / "pictures")
    with StandIn() as api:
        program = started(home, api)
        disk.fill()
        refused = program.ask("generate_image", **ORDER)["refused"]
        assert refused["code"] == "no_space" and not api.requests, refused
        disk.empty()
        api.will(filling(disk))
        told = program.ask("generate_image", output_path="fox.png", **ORDER)["result"]
        assert (told["state"], told["error_code"], told["billed"]) == ("failed", "not_saved", "yes"), told
        assert "No space left" in told["message"] and "retry_job" in told["message"], told
        assert [path.name for path in program.pictures.iterdir()] == ["ballast"], "nothing half written is left"
        disk.empty()
        again = program.ask("retry_job", job_id=told["job_id"])["result"]["job_id"]
        done = wait_for(program, again)
        assert done["state"] == "completed" and done["cost"]["micro_usd"] == 0, done
        assert len(api.requests) == 1, "it is not drawn again"
        (image,) = done["images"]
        assert digest(Path(image["path"]).read_bytes()) == image["sha256"]
        end_well(program)


def home_has_no_room(home: Path) -> None:
    disk = SmallDisk(home / "imaged")
    with StandIn(filling(disk)) as api:
        program = started(home, api)
        told = program.ask("generate_image", output_path="fox.png", **ORDER)["result"]
        assert (told["state"], told["error_code"], told["billed"]) == ("failed", "not_stored", "yes"), told
        saved = program.pictures / "fox.png"
        assert str(saved) in told["message"] and saved.read_bytes().startswith(b"\x89PNG"), told
        refused = program.ask("generate_image", **ORDER, again=True)
        assert "result" not in refused and "space" in str(refused), refused
        assert len(api.requests) == 1, "what cannot be recorded is not sent"
        known = program.ask("check_job_status", job_id=told["job_id"])["result"]
        assert known["state"] == "failed", "what is known can still be asked"
        disk.empty()
        done = program.ask("generate_image", **ORDER, again=True)["result"]
        assert done["state"] == "completed" and len(api.requests) == 2, done
        program.kill()
        program.start().ready()
        assert program.ask("check_job_status", job_id=told["job_id"])["result"] == known
        end_well(program)


def home_has_room_again(home: Path) -> None:
    disk = SmallDisk(home / "imaged")
    with StandIn(filling(disk, home / "pictures")) as api:
        program = started(home, api)
        job = program.ask("start_generation_job", tool_name="generate_image", **ORDER)["result"]["job_id"]
        wait_until(lambda: "finds no place either" in program.said(), "the picture to find no place at all")
        disk.empty()
        told = wait_for(program, job)
        assert (told["state"], told["error_code"], told["billed"]) == ("failed", "not_saved", "yes"), told
        program.pictures.unlink()
        again = program.ask("retry_job", job_id=job)["result"]["job_id"]
        assert wait_for(program, again)["state"] == "completed" and len(api.requests) == 1
        end_well(program)


def wait_for(program: Program, job: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        told: dict[str, Any] = program.ask("get_job_result", job_id=job)["result"]
        return told if told["state"] not in ("pending", "running") else None

    found: dict[str, Any] = wait_until(over, f"job {job} to be over")
    return found


def end_well(program: Program) -> None:
    assert program.end() == 0, program.said()
    assert "Traceback" not in program.said(), program.said()
    found = verify(program.places.events)
    assert found.fault is None, found.fault


CASES = {case.__name__: case for case in (pictures_have_no_room, home_has_no_room, home_has_room_again)}

if __name__ == "__main__":
    CASES[sys.argv[1]](Path(sys.argv[2]))
