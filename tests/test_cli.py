"""The command line as scripts use it: what stands on stdout, what on stderr, and with which status it ends."""

import io
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from daemon import (
    bridge,
    cli,
    cli_completion,
    cli_connection,
    cli_draw,
    cli_exits,
    cli_options,
    cli_pictures,
    cli_terminal,
    cli_waiting,
    client,
)
from daemon.errors import NotRunning
from tests.program import IMAGED, SECONDS_MAX, Program, environment, running
from tests.standin import Behaviour, Request, StandIn
from tests.test_readme import ENGLISH, ROOT, tables
from tests.tools.pictures_for_tests import picture

KEY = "sk-test-canary-0123456789"
SMALL = ("--size", "1024x1024", "--quality", "low")
HEAVY = ("trio", "mcp", "rich", "PIL", "httpx", "dateparser", "argcomplete", "sqlite3")


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Imaged = Callable[..., Ended]


class Scene(NamedTuple):
    program: Program
    standin: StandIn


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One daemon for everything here, and an OpenAI that does as it is told."""
    home = tmp_path_factory.mktemp("cli")
    with StandIn() as standin:
        settings = {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": standin.url}
        with running(home, **settings) as program:
            yield Scene(program, standin)


@pytest.fixture
def imaged(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Imaged]:
    """The command, in a working directory of its own."""
    for name, value in scene.program.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    scene.standin.will()
    yield partial(run, monkeypatch, capsys)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, stdin: bytes = b"", **settings: str
) -> Ended:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            status = cli.main(words)
        except SystemExit as left:
            status = int(left.code or 0)
    return Ended(status, *capsys.readouterr())


def says(status: int, code: str) -> Behaviour:
    return lambda request: request.error(status, code)


def cut(request: Request) -> None:
    request.reply_half_then(lambda: None)


def uuid_of(imaged: Imaged, prompt: str) -> str:
    ended = imaged("generate", prompt, *SMALL, "--json")
    assert ended.status == 0, ended
    return str(ended.document["job_id"])


def test_every_picture_is_a_line_on_stdout_and_all_else_stands_on_stderr(imaged: Imaged, scene: Scene) -> None:
    ended = imaged("generate", "a fox", "-n", "2", "-o", f"{scene.program.pictures}/", *SMALL)
    assert ended.status == 0
    paths = [Path(line) for line in ended.out.splitlines()]
    assert len(paths) == 2 and all(path.is_absolute() and path.stat().st_size for path in paths)
    assert {path.parent for path in paths} == {scene.program.pictures}
    assert "Cost: $0." in ended.err and "History ID: 0" in ended.err and "\x1b" not in ended.out + ended.err


def test_json_is_the_whole_report_and_nothing_else(imaged: Imaged) -> None:
    ended = imaged("generate", "a fox", *SMALL, "--json", "--format", "webp", "--compression", "70", "--moderation", "low")
    report = ended.document
    assert (ended.status, report["state"], report["output_format"]) == (0, "completed", "webp")
    assert (report["requested"]["output_compression"], report["requested"]["moderation"]) == (70, "low")
    assert report["images"][0]["path"].endswith(".webp")


def test_a_prompt_comes_as_an_argument_through_stdin_or_from_a_file(imaged: Imaged, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("\ufeff狐 in the snow\n", "utf-8")
    offline = {"IMAGED_BACKEND": "offline"}
    prompts = [
        imaged("generate", "--json", *words, stdin=b"a badger\n", **offline).document["prompt"]
        for words in (["@prompt.txt"], ["-"], ["--", "-5°"], [" as it is "])
    ]
    assert prompts == ["狐 in the snow", "a badger", "-5°", " as it is "]


@pytest.mark.parametrize(
    ("words", "stdin", "why"),
    [
        (["generate", " "], b"", "the prompt is empty"),
        (["generate", "-"], b" \n", "the prompt is empty"),
        (["generate", "-"], b"\xff", "stdin is not text in UTF-8"),
        (["generate", "@nowhere.txt"], b"", "@nowhere.txt cannot be read: No such file"),
        (["generate", "a fox", "-o", "-"], b"", "give a file name"),
        (["edit", "-", "-"], b"snow", "stdin can be read once"),
        (["edit", "snow", "-"], b"", "stdin is empty"),
        (["edit", "snow"], b"", "SOURCE: edit_image needs a picture"),
        (["generate", "a fox", "-n", "99"], b"", "--count: sample_count is 99; allowed is"),
        (["generate", "a fox", "--size", "7x7"], b"", "--size: size is"),
        (["generate", "a fox", "--sise", "1024x1024"], b"", "did you mean --size?"),
        (["generate", "a fox", "--wait", "-1"], b"", "not a number of seconds"),
        (["genrate", "a fox"], b"", "did you mean generate?"),
        (["jobs", "lst"], b"", "did you mean list?"),
        (["history", "--since", "gibberish"], b"", "--since is 'gibberish'"),
        (["show", "x/0"], b"", "names no picture"),
    ],
)
def test_a_wrong_command_line_orders_nothing_and_says_what_is_right(
    imaged: Imaged, scene: Scene, words: list[str], stdin: bytes, why: str
) -> None:
    asked = len(scene.standin.requests)
    plain = imaged(*words, stdin=stdin)
    assert (plain.status, plain.out) == (cli_exits.USAGE, "") and why in plain.err
    document = imaged(*words, "--json", stdin=stdin).document if "--" not in words else {}
    assert document["error"]["code"] and document["error"]["message"] in plain.err
    assert len(scene.standin.requests) == asked


def test_sources_are_files_of_the_working_directory_stdin_and_earlier_pictures(imaged: Imaged, tmp_path: Path) -> None:
    offline = {"IMAGED_BACKEND": "offline"}  # and no OPENAI_IMAGE_INPUT_DIR: who names a file here may read it
    (tmp_path / "house.png").write_bytes(picture("png", 64, 64))
    Image.new("RGBA", (64, 64)).save(tmp_path / "mask.png")
    gone = imaged("transform", "as a woodcut", "gone.png", **offline)
    assert (gone.status, gone.out) == (cli_exits.FAILED, "") and "SOURCE: There is no" in gone.err
    earlier = imaged("generate", "a fox", "-n", "2", "--json", **offline).document["job_id"]
    words = ("edit", "snow", "-i", "house.png", "--mask", "mask.png", "--json", "-", f"{earlier}/2")
    report = imaged(*words, stdin=picture("png", 32, 48), **offline).document
    assert [(s["name"], s["width"], s["height"]) for s in report["sources"][:1]] == [(str(tmp_path / "house.png"), 64, 64)]
    assert [(s["width"], s["height"]) for s in report["sources"][1:2]] == [(32, 48)]
    assert [s["name"] for s in report["sources"][2:]] == [f"{earlier}/2", "mask"]


def test_output_is_of_the_working_directory_and_its_ending_is_the_format(imaged: Imaged, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    drawn = partial(imaged, "generate", "a fox", IMAGED_BACKEND="offline")
    assert drawn("-o", "a.WEBP").out == f"{tmp_path}/a.WEBP\n"
    assert drawn("-o", "folder").out == f"{tmp_path}/folder/generated_image.png\n"
    assert drawn("-o", "folder/../b.jpg").out == f"{tmp_path}/b.jpg\n"
    assert drawn("-o", "b.jpg", "--format", "png").out == f"{tmp_path}/b.png\n"
    assert (tmp_path / "a.WEBP").read_bytes()[8:12] == b"WEBP"
    source = imaged("transform", "as a woodcut", "b.png", "-o", "c.png", IMAGED_BACKEND="offline")
    assert source.out == f"{tmp_path}/c.png\n"


@pytest.mark.parametrize(
    ("behaviour", "code", "status"),
    [
        (says(400, "moderation_blocked"), "moderation_blocked", 6),
        (says(429, "insufficient_quota"), "quota_exhausted", 5),
        (says(401, "invalid_api_key"), "invalid_key", 4),
        (says(400, "odd"), "bad_request", 1),
        (cut, "outcome_unknown", 8),
    ],
)
def test_the_exit_status_tells_why_there_is_no_picture(
    imaged: Imaged, scene: Scene, behaviour: Behaviour, code: str, status: int
) -> None:
    scene.standin.will(behaviour)
    ended = imaged("generate", "a fox", *SMALL)
    assert (ended.status, ended.out) == (status, "") and "imaged: job 0" in ended.err
    assert imaged("jobs", "list", "--limit", "1", "--json").document["jobs"][0]["error_code"] == code


def test_without_a_key_nothing_is_ordered_and_the_refusal_is_a_document(imaged: Imaged) -> None:
    ended = imaged("generate", "a fox", "--json", OPENAI_API_KEY="")
    assert (ended.status, ended.document["error"]["code"]) == (cli_exits.KEY, "no_key")
    assert ended.document["error"]["billed"] == "no" and "OPENAI_API_KEY" in ended.err


def test_every_code_that_has_a_status_of_its_own_is_known_elsewhere() -> None:
    source = "".join(
        path.read_text("utf-8")
        for folder in ("tools", "daemon")
        for path in ROOT.glob(f"{folder}/*.py")
        if not path.name.startswith("cli_")
    )
    for code in (*cli_exits._OF_FAILURES, *cli_exits._OF_REFUSALS):
        assert f'"{code}"' in source, code
    assert [cli_exits.of_refusal(code) for code in ("path_outside", "unsupported_size", "not_permitted", "no_key")] == [
        2,
        2,
        1,
        4,
    ]


@pytest.mark.parametrize(("several", "together"), [([0, 0], 0), ([6, 6], 6), ([0, 6], 3), ([6, 7], 1), ([3, 1], 3)])
def test_several_jobs_have_the_status_that_they_have_in_common(several: list[int], together: int) -> None:
    assert cli_exits.of_all(several) == together


def test_a_wait_that_runs_out_says_how_to_come_back_and_the_job_goes_on(imaged: Imaged) -> None:
    ended = imaged("generate", "a fox", *SMALL, "--wait", "0")
    job_id = ended.err.rpartition(" ")[2].strip()
    assert (ended.status, ended.out) == (cli_exits.WAIT_RAN_OUT, "")
    assert f"imaged jobs wait {job_id}" in ended.err and f"imaged jobs cancel {job_id}" in ended.err
    waited = imaged("jobs", "wait", job_id)
    assert waited.status == 0 and Path(waited.out.strip()).exists()


def test_no_wait_prints_the_id_and_several_are_waited_for_together(imaged: Imaged, scene: Scene) -> None:
    good = imaged("generate", "a fox", *SMALL, "--no-wait").out.strip()
    assert imaged("jobs", "wait", good).status == 0
    scene.standin.will(says(400, "moderation_blocked"))
    bad = imaged("generate", "a fox", *SMALL, "--no-wait", "--json").document["job_id"]
    ended = imaged("jobs", "wait", good, bad)
    assert (ended.status, len(ended.out.splitlines())) == (cli_exits.PARTLY, 1) and f"job {bad} failed" in ended.err
    both = imaged("jobs", "wait", good, bad, "--json")
    assert [(job["job_id"], job["state"]) for job in both.document["jobs"]] == [(good, "completed"), (bad, "failed")]
    assert imaged("jobs", "wait", bad).status == cli_exits.MODERATION
    cancelled = imaged("jobs", "cancel", good, "nowhere", "--json")
    assert [job["error"]["code"] for job in cancelled.document["jobs"]] == ["already_over", "no_such_job"]
    assert cancelled.status == 1


def test_what_was_lost_is_resolved_and_drawn_again(imaged: Imaged, scene: Scene) -> None:
    scene.standin.will(cut)
    lost = imaged("generate", "a fox", *SMALL, "--json").document["job_id"]
    spent = imaged("spending")
    assert imaged("jobs", "wait", lost).status == cli_exits.OUTCOME_UNKNOWN
    assert lost in spent.err and spent.out.splitlines()[0].count("\t") == 5
    assert imaged("jobs", "resolve", lost, "--billed", "--amount", "0.05", "--json").document["billed"] == "yes"
    assert imaged("jobs", "wait", lost).status == cli_exits.FAILED, "there is no picture, but no doubt either"
    again = imaged("jobs", "retry", lost)
    assert again.status == 0 and Path(again.out.strip()).exists()
    listed = imaged("jobs", "list", "--state", "interrupted").out.splitlines()
    assert lost in [line.split("\t")[0] for line in listed] and {line.split("\t")[2] for line in listed} == {"interrupted"}


class Forgetful:
    """A daemon that goes away once it has taken an order, and the one that comes after it. Same names as a connection."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report
        self._goes_away = 2
        self.only_wait = lambda: None
        self.orders: dict[object, int] = {}

    def ask(self, operation: str, **given: object) -> dict[str, Any]:
        if operation == "start_generation_job":
            self.orders.setdefault(given["idempotency_key"], 0)
            self.orders[given["idempotency_key"]] += 1
        if self._goes_away:
            self._goes_away -= 1
            raise NotRunning("it ended.")
        return {"result": self._report, "text": "", "failed": False}


def test_a_daemon_that_goes_away_is_asked_again_with_the_same_key(imaged: Imaged, capsys: pytest.CaptureFixture[str]) -> None:
    report = imaged("generate", "a fox", *SMALL, "--json").document
    daemon = Forgetful(report)
    given = {"prompt": "a fox", "idempotency_key": "k1"}
    status = cli_waiting.order(daemon, "start_generation_job", given, {}, cli_waiting.Manners(inline=False))  # type: ignore[arg-type]
    assert (status, daemon.orders) == (0, {"k1": 3})
    assert capsys.readouterr().out.strip() == report["images"][0]["path"]
    for_ever = Forgetful(report)
    for_ever._goes_away = 99
    with pytest.raises(NotRunning):
        cli_waiting.order(for_ever, "start_generation_job", given, {}, cli_waiting.Manners())  # type: ignore[arg-type]
    assert for_ever.orders == {"k1": 4}
    assert "imaged jobs list shows whether there is a job" in capsys.readouterr().err


def test_whoever_only_waits_starts_a_daemon_after_a_crash_and_not_after_a_stop(
    imaged: Imaged, scene: Scene, tmp_path: Path
) -> None:
    enough = threading.Event()

    def slowly(request: Request) -> None:
        assert enough.wait(SECONDS_MAX)
        request.reply(200, request.good_reply())

    scene.standin.will(slowly)
    settings = {name: scene.program.environment[name] for name in ("IMAGED_BACKEND", "OPENAI_API_KEY", "OPENAI_BASE_URL")}
    with running(tmp_path, IMAGED_MAX_CONCURRENT="1", **settings) as program:
        small = {"tool_name": "generate_image", "size": "1024x1024", "quality": "low"}
        for prompt in ("a fox", "a hen"):
            job_id = program.ask("start_generation_job", prompt=prompt, **small)["result"]["job_id"]
        ordered = [*IMAGED, "jobs", "wait", job_id]
        waiting = subprocess.Popen(ordered, env=program.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            assert waiting.stderr is not None and "waiting for a free place" in waiting.stderr.readline()
            program.ask("stop_daemon")
            enough.set()
            _, said = waiting.communicate(timeout=SECONDS_MAX)
        finally:
            enough.set()
            waiting.kill()
        program.wait_for_end()
        assert waiting.returncode == cli_exits.NO_DAEMON and "goes on when a daemon runs again" in said, said
        assert f"imaged jobs wait {job_id}" in said
        with pytest.raises(NotRunning):
            program.ask("get_status")
        with client.connected(program.places, program.environment, start=True) as connection:
            connection.only_wait()
            pid = connection.ask("get_status")["result"]["pid"]
            os.kill(pid, signal.SIGKILL)
            successor = cli_connection.ask_again(connection, "get_status")["result"]["pid"]
            assert successor != pid
            os.kill(successor, signal.SIGTERM)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored since the daemon was started from here


class Breaking(Forgetful):
    """Takes the order, and then breaks off as it is told; or gives the picture's report, and not the picture."""

    def __init__(self, report: dict[str, Any], breaks: BaseException | None) -> None:
        super().__init__(report)
        self._goes_away = 0
        self._breaks = breaks

    def ask(self, operation: str, **given: object) -> dict[str, Any]:
        if operation == "start_generation_job":
            return {"result": {**self._report, "state": "running"}}
        if self._breaks is not None:
            raise self._breaks
        return {"result": {"position": 1, "jobs": [self._report]}}

    def picture(self, uuid: str, n: int) -> bytes:
        raise NotRunning("it ended.")


@pytest.mark.parametrize(("breaks", "status"), [(NotRunning("it ended."), 9), (bridge.Trouble("it is stuck."), 1)])
@pytest.mark.parametrize("words", [["generate", "a fox"], ["jobs", "wait"]])
def test_a_wait_that_breaks_names_the_job_on_stderr_and_in_the_document(
    imaged: Imaged, monkeypatch: pytest.MonkeyPatch, words: list[str], breaks: Exception, status: int
) -> None:
    report = imaged("generate", "a fox", *SMALL, "--json").document
    monkeypatch.setattr(cli_connection, "connected", lambda **_: nullcontext(Breaking(report, breaks)))
    running = cli_waiting.read({"result": {**report, "state": "running"}}, cli_waiting.JobReport)
    monkeypatch.setattr(cli_waiting, "find", lambda *_: (running,))
    ended = imaged(*words, *([report["job_id"]] if words[0] == "jobs" else []), "--json")
    assert (ended.status, ended.document["error"]["job_id"]) == (status, report["job_id"])
    assert f"imaged jobs wait {report['job_id']}" in ended.err and str(breaks) in ended.err


def test_a_picture_that_cannot_be_shown_any_more_is_still_drawn(imaged: Imaged, monkeypatch: pytest.MonkeyPatch) -> None:
    report = imaged("generate", "a fox", *SMALL, "--json").document
    monkeypatch.setattr(cli_connection, "connected", lambda **_: nullcontext(Breaking(report, None)))
    monkeypatch.setattr(cli_pictures, "has_escapes", lambda stream: True)
    ended = imaged("generate", "a fox", TERM="xterm-kitty")
    assert (ended.status, ended.out.strip()) == (0, report["images"][0]["path"])


def test_two_orders_have_two_keys() -> None:
    parser = cli._parser()
    orders = [cli_draw._order("generate_image", parser.parse_args(["generate", "a fox"])) for _ in range(2)]
    assert len({order["idempotency_key"] for order in orders}) == 2
    own = parser.parse_args(["generate", "a fox", "--idempotency-key", "mine"])
    assert cli_draw._order("generate_image", own)["idempotency_key"] == "mine"


def test_lists_are_lines_with_tabs_and_history_is_found_by_text_time_and_moment(imaged: Imaged, scene: Scene) -> None:
    first = uuid_of(imaged, "a quokka\nwith\ttabs and [red]markup[/red] \u202e")
    position = imaged("status", "--json").document["log_position"]
    second = uuid_of(imaged, "another quokka")
    ended = imaged("history", "--query", "QUOKKA", "--since", "today")
    lines = [line.split("\t") for line in ended.out.splitlines()]
    assert [line[0] for line in lines] == [second, first] and {len(line) for line in lines} == {7}
    assert lines[1][6] == r"a quokka with tabs and [red]markup[/red] \u{202e}" and Path(lines[1][5]).exists()
    assert imaged("history", "--query", "quokka", "--until", "yesterday").out == ""
    assert imaged("history", "--query", "quokka", "--json", "--offset", "1").document["generations"][0]["job_id"] == first
    then = imaged("history", "--query", "quokka", "--as-of", str(position), "--json")
    assert [job["job_id"] for job in then.document["generations"]] == [first]
    assert imaged("history", "--query", "quokka", "--as-of", "now").out == ended.out
    assert imaged("history", "--query", "numbat", "--as-of", "now").out == ""
    assert imaged("history", "--limit", "1").err == "", "whoever sets the limit knows of it"


def test_the_history_of_then_needs_no_daemon_and_starts_none(imaged: Imaged, scene: Scene, tmp_path: Path) -> None:
    events = tmp_path / "copy" / "events"
    events.mkdir(parents=True)
    for segment in scene.program.places.events.iterdir():
        (events / segment.name).write_bytes(segment.read_bytes())
    ended = imaged("history", "--as-of", "now", IMAGED_HOME=str(tmp_path / "copy"))
    assert ended.status == 0 and ended.out == imaged("history").out
    assert not (tmp_path / "copy" / "run").exists()
    for words in (["history", "--as-of", "20250101"], ["audit", "replay", "--until", "20250101"]):
        beyond = imaged(*words, IMAGED_HOME=str(tmp_path / "copy"))
        assert (beyond.status, beyond.out) == (2, "") and "; a day is written YYYY-MM-DD." in beyond.err
        assert f"the log ends at commit {len(scene.program.log())}" in beyond.err
    missing = imaged("history", "--as-of", "3", "--json", IMAGED_HOME=str(tmp_path / "nowhere"))
    assert (missing.status, missing.document["error"]["code"]) == (1, "no_log")


def test_a_generation_is_shown_whole_and_its_picture_opened(imaged: Imaged, tmp_path: Path) -> None:
    drawn = imaged("generate", "a lynx \u202e of\nthe north", *SMALL, "--json").document
    uuid, path = drawn["job_id"], drawn["images"][0]["path"]
    shown = imaged("show", f"{uuid}/1")
    assert shown.status == 0 and "Prompt: a lynx \\u{202e} of\nthe north" in shown.out and path in shown.out
    assert imaged("show", uuid, "--json").document["prompt"] == "a lynx \u202e of\nthe north"
    assert "\\u202e" in imaged("show", uuid, "--json").out
    assert "has no picture 2" in imaged("show", f"{uuid}/2").err
    opener = tmp_path / "bin" / "xdg-open"
    opener.parent.mkdir()
    opener.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    opener.chmod(0o755)
    with_display = {"DISPLAY": ":9", "PATH": f"{opener.parent}:{os.environ['PATH']}"}
    if sys.platform != "darwin":
        assert "no display" in imaged("open", uuid, DISPLAY="", WAYLAND_DISPLAY="").err
        assert imaged("open", uuid, **with_display) == (0, f"{path}\n", "")
        assert (tmp_path / "opened").read_text("utf-8") == path
        opener.write_text("#!/bin/sh\nexit 3\n")
        assert "could not open" in imaged("open", uuid, **with_display).err
    Path(path).unlink()
    gone = imaged("open", uuid, "--json", **with_display)
    assert (gone.status, gone.document["error"]["code"]) == (1, "not_there")


def test_events_are_the_log_from_any_position_on(imaged: Imaged, scene: Scene) -> None:
    uuid = uuid_of(imaged, "a \u202e heron")
    told = [json.loads(line) for line in imaged("events", "--json").out.splitlines()]
    assert [one["position"] for one in told] == list(range(1, len(told) + 1))
    asked = next(one["position"] for one in told if uuid in [fact.get("job") for fact in one["events"]])
    lines = imaged("events", "--after", str(asked - 1)).out.splitlines()
    assert f"#{asked} RequestReceived" in lines[0] and "“a \\u{202e} heron”" in lines[0]
    assert any(f"JobCompleted {uuid}" in line for line in lines)
    ahead = imaged("events", "--after", "999999", "--json")
    assert (ahead.status, ahead.document["error"]["code"]) == (1, "cursor_ahead")


def test_models_and_spending_are_tables_of_whole_lines(imaged: Imaged) -> None:
    models = [line.split("\t") for line in imaged("models").out.splitlines()]
    names = [model["name"] for model in imaged("models", "--json").document["models"]]
    assert [model[0] for model in models] == names and {len(model) for model in models} == {5}
    by_model = imaged("spending", "--by", "model", "--since", "last month", "--json").document
    assert by_model["by"] == "model" and by_model["since"].endswith("-01") and by_model["total"]["images"] > 0
    assert imaged("spending", "--by", "phase").status == cli_exits.USAGE


def test_where_no_daemon_runs_only_looking_at_it_fails(imaged: Imaged, tmp_path: Path) -> None:
    for command in ("status", "stop"):
        ended = imaged(command, "--json", IMAGED_HOME=str(tmp_path / "none"))
        assert (ended.status, ended.document["error"]["code"]) == (cli_exits.NO_DAEMON, "no_daemon")
        assert "no daemon is running" in ended.err
    assert not (tmp_path / "none").exists()
    broken = imaged("status", "--json", IMAGED_HOME="relative")
    assert (broken.status, broken.document["error"]["code"]) == (1, "failed") and "IMAGED_HOME is 'relative'" in broken.err


def test_a_daemon_that_cannot_open_its_store_says_so_in_a_sentence(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"no folder")
    environment = {**scene.program.environment, "IMAGED_HOME": str(tmp_path)}
    ended = subprocess.run([*IMAGED, "serve"], env=environment, cwd=ROOT, capture_output=True, timeout=SECONDS_MAX)
    assert ended.returncode == cli_exits.FAILED and b"Traceback" not in ended.stderr
    assert f"{tmp_path}/store/spool cannot be used: Not a directory.".encode() in ended.stderr


def test_whoever_reads_no_further_ends_it_quietly(scene: Scene) -> None:
    command = ["sh", "-c", f"{shlex.join(IMAGED)} events --json | head -c 1"]
    ended = subprocess.run(command, env=scene.program.environment, cwd=ROOT, capture_output=True, timeout=SECONDS_MAX)
    assert (ended.stdout, ended.stderr) == (b"{", b"")


def leaves(parser: cli_options.Parser) -> Iterator[cli_options.Parser]:
    for inner in (parser.commands.choices if parser.commands else {}).values():
        yield from leaves(inner) if inner.commands else [inner]


def examples(parser: cli_options.Parser) -> list[str]:
    lines = (parser.epilog or "").split("\n\n")[0].splitlines()[1:]
    return [line.strip().split("  ")[0] for line in lines]


OURS = [leaf for leaf in leaves(cli._parser()) if leaf.prog not in ("imaged mcp", "imaged audit")]


@pytest.mark.parametrize("leaf", OURS, ids=lambda leaf: leaf.prog)
def test_every_command_has_a_short_summary_and_examples_that_are_understood(leaf: cli_options.Parser) -> None:
    assert leaf.description and leaf.description.endswith(".") and len(leaf.description) <= 62
    assert examples(leaf)
    for example in examples(leaf):
        words = shlex.split(example.split("|")[0])
        words = words[: next((n for n, word in enumerate(words) if word in ("<", ">")), len(words))]
        assert words[0] == "imaged", example
        if "$(" not in example:
            assert cli._parser().parse_args(words[1:]).command, example


def test_the_help_names_every_command_once_in_lines_that_fit(imaged: Imaged) -> None:
    page = imaged("--help").out
    assert imaged("help", "jobs").out == imaged("jobs", "--help").out
    commands = cli._parser().commands
    assert commands is not None
    grouped = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(commands.choices)
    assert all(f"\n  {name} " in page for name in grouped) and max(map(len, page.splitlines())) <= 80


def test_the_readme_has_the_table_of_exit_statuses() -> None:
    (table,) = (rows for rows in tables(ENGLISH) if rows[2:3] == [["0"]])
    assert [int(row[0]) for row in table[2:]] == list(cli_exits.MEANINGS)
    for status, meaning in cli_exits.MEANINGS.items():
        assert f"| `{status}` | {meaning} |" in ENGLISH


def test_help_version_and_slips_import_nothing_large(tmp_path: Path) -> None:
    for words in (["--help"], ["--version"], ["generate", "--help"], ["genrate"]):
        command = [sys.executable, "-X", "importtime", "-m", "daemon", *words]
        ended = subprocess.run(command, env=environment(tmp_path), cwd=ROOT, capture_output=True, timeout=SECONDS_MAX)
        modules = {
            line.rpartition("|")[2].strip() for line in ended.stderr.decode().splitlines() if line.startswith("import time:")
        }
        assert "daemon.cli" in modules and not modules & set(HEAVY), (words, modules & set(HEAVY))


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete "), ("zsh", "compdef "), ("fish", "complete --command imaged")])
def test_each_shell_gets_its_lines(imaged: Imaged, shell: str, word: str) -> None:
    ended = imaged("completion", shell)
    assert ended.status == 0 and word in ended.out and "imaged" in ended.out


def test_a_shell_is_offered_commands_words_and_the_ids_of_jobs(imaged: Imaged, scene: Scene, tmp_path: Path) -> None:
    uuid = uuid_of(imaged, "a crane")
    assert cli_completion.job_ids()[uuid] == "completed: a crane"
    for line, expected in (
        ("imaged gen", "generate"),
        ("imaged generate x --quality xh", "xhigh"),
        (f"imaged show {uuid[:-2]}", uuid),
    ):
        assert offered(scene.program.environment, line, tmp_path) == [expected]
    assert offered(scene.program.environment, "imaged completion ", tmp_path) == ["bash", "zsh", "fish"]
    nobody = environment(tmp_path)
    assert offered(nobody, "imaged show 0", tmp_path) == [] and not Path(nobody["IMAGED_HOME"]).exists()


def offered(settings: Mapping[str, str], line: str, place: Path) -> list[str]:
    """As the shell's function asks: no arguments, nothing on stdin."""
    answer = place / "offered"
    asking = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }
    ended = subprocess.run(
        IMAGED,
        env={**settings, **asking},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS_MAX,
    )
    assert (ended.returncode, ended.stdout) == (0, b"")
    return [word.strip() for word in answer.read_text("utf-8").splitlines()]


def test_two_dots_behind_a_link_mean_what_they_mean_to_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    monkeypatch.chdir(tmp_path)
    assert cli_draw.output("link/../fox.png") == str(tmp_path / "far" / "fox.png")
    assert cli_draw.output("link/..") == str(tmp_path / "far" / "generated_image.png")
    assert cli_draw.output("link/fox.png") == str(tmp_path / "link" / "fox.png")
    edit = cli._parser().parse_args(["edit", "snow", "link/../cat.png", "--mask", "link/../mask.png"])
    order = cli_draw._order("edit_image", edit)
    assert order["reference_images"] == [str(tmp_path / "far" / "cat.png")]
    assert order["mask_image_path"] == str(tmp_path / "far" / "mask.png")


class Cancelling:
    """Cancels what it is asked to, and counts."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report
        self.cancelled = 0

    def ask(self, operation: str, **given: object) -> dict[str, Any]:
        assert operation == "cancel_job"
        self.cancelled += 1
        return {"result": {**self._report, **given, "state": "cancelled", "message": "Gone\tand\nover."}}


def test_each_cancelled_job_is_a_row_and_all_are_cancelled_before_the_first_is_told(
    imaged: Imaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Cancelling(imaged("generate", "a fox", *SMALL, "--json").document)
    monkeypatch.setattr(cli_connection, "connected", lambda: nullcontext(daemon))
    ended = imaged("jobs", "cancel", "1", "2")
    assert (ended.status, ended.out) == (0, "".join(f"{n}\tcancelled\tGone\\u{{9}}and\\u{{a}}over.\n" for n in "12"))
    monkeypatch.setattr(cli_terminal, "row_out", lambda row: asked_for.append((row, daemon.cancelled)))
    asked_for: list[tuple[object, int]] = []
    assert imaged("jobs", "cancel", "3", "4").status == 0 and [count for _, count in asked_for] == [4, 4]


def test_a_sentence_of_several_lines_keeps_them_and_nothing_passes_for_ours(
    imaged: Imaged, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli_terminal.say("left as it is:\n{\nimaged: \x1b[0m\n}")
    assert capsys.readouterr().err == "imaged: left as it is:\n  {\n  imaged: \\u{1b}[0m\n  }\n"
    (tmp_path / "faults.json").write_text('{"jobs": [{"prompt": ""}, {"prompt": 7}]}')
    faults = imaged("batch", "faults.json")
    assert faults.status == 2 and len(faults.err.splitlines()) == 3 and "\\u{a}" not in faults.err


def test_whoever_follows_through_a_pipe_is_told_at_once(scene: Scene, imaged: Imaged) -> None:
    environ = {name: value for name, value in scene.program.environment.items() if name != "PYTHONUNBUFFERED"}
    command = [*IMAGED, "events", "--follow", "--after", str(len(scene.program.log()) - 1)]  # one commit fills no buffer
    with subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as following:
        assert following.stdout is not None
        try:
            ready, _, _ = select.select([following.stdout], [], [], SECONDS_MAX)
            assert ready, "nothing was told"
        finally:
            following.kill()


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("generate fox --size 1024x1024 --quality low >&-", 0, "History ID"),
        ("generate - <&-", 2, "the prompt is empty"),
        ("history --json > /dev/full", 1, "No space left on device"),
        ("history --state x --json > /dev/full", 2, "'--state' is not understood"),
        ("jobs show nowhere --json > /dev/full", 1, "nowhere"),
    ],
)
def test_a_closed_or_full_stream_is_no_bug_of_ours(scene: Scene, command: str, status: int, said: str) -> None:
    environ = {name: value for name, value in scene.program.environment.items() if name != "PYTHONUNBUFFERED"}
    whole = ["sh", "-c", f"{shlex.join(IMAGED)} {command}"]
    ended = subprocess.run(whole, env=environ, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=SECONDS_MAX)
    assert (ended.returncode, "Traceback" in ended.stderr, "Exception ignored" in ended.stderr) == (status, False, False)
    assert said in ended.stderr


def test_a_reader_who_leaves_before_the_first_line_is_no_failure(scene: Scene) -> None:
    environ = {name: value for name, value in scene.program.environment.items() if name != "PYTHONUNBUFFERED"}
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        ended = subprocess.run(
            [*IMAGED, "status"], env=environ, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, timeout=SECONDS_MAX
        )
    finally:
        os.close(theirs)
    assert (ended.returncode, ended.stderr) == (0, b"")
