"""What the tests of the old defects share: one daemon, one stand-in for OpenAI, one client, and how their answers are read.

As a program (`python -m tests.not_like_that_scene FOLDER`) this is the real daemon with a disk that takes a picture only
when it is let: it says `held` in that folder, and waits for `let go`.
"""

import functools
import io
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from daemon import cli
from eventlog.disk import Disk
from eventlog.values import Sha256
from tests.program import IMAGED, Program, Stdio
from tests.standin import StandIn
from tools.store import Store

HELD_SECONDS_MAX = 20.0  # then it gives up and says so: a daemon that waits for its disk must not wait for ever
SMALL = {"size": "1024x640", "quality": "low"}


class Scene(NamedTuple):
    """One daemon, one stand-in for OpenAI, and one client over stdio that has shaken hands."""

    program: Program
    standin: StandIn
    client: Stdio

    @property
    def home(self) -> Path:
        return self.program.home

    @contextmanager
    def session(self, here: Path = Path("/"), **settings: str) -> Iterator[Stdio]:
        """Another client, started in a working directory of its own, with settings of its own."""
        command = ["sh", "-c", 'cd "$0" && exec "$@"', str(here), *IMAGED, "mcp"]
        with Stdio({**self.program.environment, **settings}, command) as other:
            other.initialize()
            yield other

    @contextmanager
    def sending(self, count: int) -> Iterator[None]:
        """Exactly so many requests reach OpenAI, and so many are billed, while the block lasts."""
        before = len(self.standin.requests)
        yield
        assert len(self.standin.requests) - before == count

    def put(self, name: str, data: bytes) -> str:
        path = self.home / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return name

    def draw(self, prompt: str = "a fox", **arguments: object) -> dict[str, Any]:
        return drawn(self.client.call("generate_image", prompt=prompt, **{**SMALL, **arguments}))

    def start(self, **arguments: object) -> str:
        asked = {"tool_name": "generate_image", "prompt": "a fox", **SMALL, **arguments}
        job_id: str = drawn(self.client.call("start_generation_job", **asked))["job_id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        report: dict[str, Any] = self.client.call("check_job_status", job_id=job_id)["structuredContent"]
        return report

    def history(self, query: str) -> int:
        total: int = self.client.call("list_history", query=query)["structuredContent"]["total"]
        return total


def said(answer: dict[str, Any]) -> str:
    text: str = answer["content"][0]["text"]
    return text


def drawn(answer: dict[str, Any]) -> dict[str, Any]:
    assert not answer["isError"], said(answer)
    report: dict[str, Any] = answer["structuredContent"]
    return report


def refused(answer: dict[str, Any]) -> dict[str, str]:
    """The refusal, which is a sentence and speaks of nothing inside us."""
    assert answer["isError"], said(answer)
    error: dict[str, str] = answer["structuredContent"]["error"]
    assert error["message"] == said(answer) and error["code"] != "internal_error"
    assert error["message"].endswith(".") and "MCP error" not in error["message"]
    return error


def files(report: dict[str, Any]) -> list[Path]:
    return [Path(image["path"]) for image in report["images"]]


def originals(scene: Scene, report: dict[str, Any]) -> list[bytes]:
    store = Store.open(scene.program.places.store)
    return [store.get(Sha256(image["original_sha256"])) for image in report["images"]]


@functools.cache
def noise(width: int, height: int) -> bytes:
    """A picture that no compression makes smaller: three bytes a pixel."""
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.Random(7).randbytes(width * height * 3)).save(out, "PNG", compress_level=0)
    return out.getvalue()


def batch_file(home: Path, name: str, count: int, **rest: object) -> None:
    jobs = [{"prompt": f"{name} {n}", "output_path": f"{name} {n}.png", **SMALL} for n in range(count)]
    (home / "here").mkdir(exist_ok=True)
    (home / "here" / "batch.json").write_text(json.dumps({"jobs": jobs, **rest}))


def held(folder: Path, number: int) -> Path:
    return folder / f"held {number}"


def let_go(folder: Path, number: int) -> Path:
    return folder / f"let go {number}"


def gave_up(folder: Path) -> Path:
    return folder / "gave up"


def hold_pictures(folder: Path) -> None:
    pwrite = Disk.pwrite
    numbers = itertools.count(1)

    def write_when_let(self: Disk, fd: int, data: bytes, offset: int) -> None:
        if data.startswith(b"\x89PNG"):
            number = next(numbers)
            held(folder, number).touch()
            give_up_at = time.monotonic() + HELD_SECONDS_MAX
            while not let_go(folder, number).exists():
                if time.monotonic() > give_up_at:
                    gave_up(folder).touch()
                    break
                time.sleep(0.005)
        pwrite(self, fd, data, offset)

    Disk.pwrite = write_when_let  # type: ignore[method-assign]


if __name__ == "__main__":
    hold_pictures(Path(sys.argv[1]))
    sys.exit(cli.main(["serve"]))
