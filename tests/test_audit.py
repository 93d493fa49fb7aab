"""The auditor on real homes: what it proves, what it finds, and that its pages and scripts do nothing of their own."""

import base64
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from daemon import auditing, cli, config, verifying
from daemon.config import Places
from daemon.errors import Refused
from daemon.verifying import Seal
from daemon.version import VERSION
from eventlog import audit
from eventlog.events import AttemptStarted, WordsForgotten
from eventlog.history import GenerationQuery, JobQuery
from eventlog.segments import read_log
from eventlog.values import Position, Sha256, digest
from tests.eventlog.builders import commit, completed, job_id, one_job, reply, requested, said, written
from tests.eventlog.disks import NoReserve
from tests.program import IMAGED, SECONDS_MAX, Program, environment, running
from tests.standin import StandIn
from tests.tools.pictures_for_tests import picture
from tools.store import Store

EVIL = '<script>alert(1)</script> "&amp; \u202e\x1b[2J </article>\n=1+1 逆光'
KEY = "sk-test-canary-0123456789"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A picture, an edit with two sources, one that failed; the daemon still runs beside the auditor."""
    place = tmp_path_factory.mktemp("audited")
    (place / "in").mkdir()
    (place / "in" / "fox.png").write_bytes(picture("png", 64, 64))
    with StandIn() as standin:
        settings = {
            "IMAGED_BACKEND": "openai",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": standin.url,
            "OPENAI_PROJECT_ID": "proj_1",
            "OPENAI_IMAGE_INPUT_DIR": str(place / "in"),
        }
        with running(place, **settings) as program:
            draw(program, "generate_image", prompt=EVIL.replace("\x1b", ""), output_path="evil.png")
            inline = base64.b64encode(picture("jpeg")).decode()
            draw(program, "edit_image", prompt="more snow \\n", reference_images=["fox.png", inline], sample_count=2)
            standin.will(lambda request: request.error(400, "bad_thing", "=HYPERLINK(no)"))
            draw(program, "generate_image", prompt="=cmd|' /C calc'!A0")
            program.ask("get_status")
            yield program.places.home


def draw(program: Program, tool: str, **arguments: object) -> None:
    answer = program.ask(tool, size="1024x1024", quality="low", **arguments)
    assert "result" in answer, answer


def copied(home: Path, place: Path) -> Path:
    shutil.copytree(home, place / "copy", ignore=shutil.ignore_patterns("run"))
    return place / "copy"


def jobs_of(home: Path) -> list[str]:
    """In the order of asking."""
    with auditing.history_as_of(home) as history:
        return [job.id for job in reversed(history.jobs(JobQuery(limit=100)).jobs)]


def segment(home: Path) -> Path:
    return max((home / "events").glob("*.jsonl"))


def test_a_sound_home_is_proved_sound_beside_its_running_daemon(home: Path) -> None:
    before = sorted(path for path in home.rglob("*"))
    found = verifying.verify(home, verifying.seal(home))
    assert found.is_sound and found.fault is None and found.broken_seal == ""
    assert (found.blobs_checked, found.blobs, found.files_unchanged, found.files) == (5, (), 3, ())
    assert sorted(path for path in home.rglob("*")) == before, "the auditor leaves nothing behind"


def test_a_changed_log_is_named_by_position_and_byte(home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    marks = [one.mark for one in read_log(copy / "events", None)]
    data = bytearray(segment(copy).read_bytes())
    data[marks[4].offset + 200] ^= 1
    segment(copy).write_bytes(data)
    found = verifying.verify(copy)
    assert not found.is_sound and found.fault is not None
    assert (found.fault.position, found.fault.offset, found.commits) == (5, marks[4].offset, 4)
    with pytest.raises(Refused, match="not sound"):
        verifying.seal(copy)


def test_missing_and_damaged_blobs_are_faults_and_files_of_their_owner_are_findings(home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    gone, damaged = sorted((copy / "store").glob("??/*"))[:2]
    gone.unlink()
    damaged.write_bytes(b"x")
    found = verifying.verify(copy)
    assert found.fault is None and not found.is_sound
    assert {one.sha256 for one in found.blobs} == {gone.name, damaged.name}
    assert all(one.position > 1 and one.job in jobs_of(copy) for one in found.blobs)
    shutil.copytree(home / "store", copy / "store", dirs_exist_ok=True)
    assert verifying.verify(copy).is_sound
    pictures = sorted((home.parent / "pictures").glob("*"))
    kept = [path.read_bytes() for path in pictures]
    try:
        pictures[0].unlink()
        pictures[1].write_bytes(b"changed")
        found = verifying.verify(copy)
        assert found.is_sound and found.files_unchanged == 1
        assert {(one.path, one.state) for one in found.files} == {(str(pictures[0]), "gone"), (str(pictures[1]), "changed")}
    finally:
        for path, data in zip(pictures, kept, strict=True):
            path.write_bytes(data)


def test_a_seal_proves_that_nothing_was_cut_off_or_written_anew(home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    whole = verifying.seal(copy)
    marks = [one.mark for one in read_log(copy / "events", None)]
    early = Seal(marks[2].position, marks[2].hash, datetime(2026, 11, 22, tzinfo=UTC))
    assert verifying.verify(copy, early).broken_seal == ""
    data = segment(copy).read_bytes()
    segment(copy).write_bytes(data[: marks[-1].offset])
    cut = verifying.verify(copy, whole)
    assert cut.fault is None and not cut.is_sound and "cut off" in cut.broken_seal
    assert verifying.verify(copy, early).is_sound
    other = Seal(early.position, Sha256("0" * 64), early.at)
    assert "written anew" in verifying.verify(copy, other).broken_seal


def test_a_seal_says_which_commit_is_the_head_and_when_it_was_made(tmp_path: Path) -> None:
    located = written(tmp_path / "events", [one_job()], NoReserve())
    assert verifying.seal(tmp_path) == Seal(*located[-1].mark[1:], located[-1].commit.at)
    for ask in (verifying.seal, verifying.verify, lambda path: list(auditing.replay(path))):
        with pytest.raises(Refused, match="no event log"):
            ask(tmp_path / "elsewhere")


def test_the_story_is_told_up_to_a_commit_or_a_moment_with_the_views_of_then(tmp_path: Path) -> None:
    story = [*one_job(), *one_job(7, number=2, prompt="a badger")]
    first = [msgspec.structs.replace(one, at=one.at + timedelta(days=36500)) for one in story]  # behind LogCreated
    written(tmp_path / "events", [[one] for one in first], NoReserve())
    told = lines(tmp_path)
    assert sum(" completed: /" in line for line in told) == 2
    assert told[1].endswith(f" #3 {job_id(1)} started")
    assert "As of commit 11: jobs: 2 completed; $0.0220 spent, $0.0000 possibly billed besides." in told
    told = lines(tmp_path, Position(8))
    assert "#8 " in told[6] and not any("#9 " in line for line in told)
    assert any(line.startswith("As of commit 8: jobs: 1 running, 1 completed") for line in told)
    assert f"  running: {job_id(2)} a badger" in told
    by_time = lines(tmp_path, first[6].at)
    assert by_time == told and first[6].position == 8
    with auditing.history_as_of(tmp_path, Position(6)) as history:
        assert history.generations(GenerationQuery(limit=9, text="FOX")).total == 1
        assert history.jobs(JobQuery(limit=9)).total == 1 and history.position() == 6


def test_every_fact_is_a_line_of_json_with_its_moment_and_then_how_things_stood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "events", [one_job()], NoReserve())
    assert cli.main(["audit", "replay", "--home", str(tmp_path), "--json", "--speed", "1e9"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    facts = [one for one in told if one["at"] is not None]
    assert [one["text"] for one in told[len(facts) :]][-1] == f"  completed: {job_id(1)} A fox in the snow"
    assert [one["position"] for one in facts] == [2, 3, 4, 5, 6]
    assert {one["job"] for one in facts} == {job_id(1)} and facts[1]["text"] == "started"
    assert facts[0]["at"].endswith("Z") and datetime.fromisoformat(facts[0]["at"]).tzinfo == UTC


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "fast"])
def test_a_speed_that_is_none_is_refused(speed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["audit", "replay", f"--speed={speed}"])
    assert left.value.code == 2 and f"'{speed}' is not a positive number such as 1, 10 or 0.5" in capsys.readouterr().err


def test_each_fact_is_told_at_once_and_an_interrupt_ends_the_story(tmp_path: Path) -> None:
    story = one_job()
    later = [msgspec.structs.replace(one, at=one.at + timedelta(days=n)) for n, one in enumerate(story)]
    written(tmp_path / "events", [[one] for one in later], NoReserve())
    command = [*IMAGED, "audit", "replay", "--home", str(tmp_path), "--speed", "1"]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        first = process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        rest, said = process.communicate(timeout=SECONDS_MAX)
    assert b"requested by" in first and b"completed" not in rest
    assert (process.returncode, said) == (130, b"")


def lines(home: Path, until: auditing.Until = None) -> list[str]:
    return [audit.line(told, whose=True) for told in auditing.replay(home, until)]


class Time:
    """A clock that moves only when somebody sleeps, or takes his time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.seconds += seconds


@pytest.mark.parametrize(
    ("speed", "reading_seconds", "slept"),
    [
        (1, 0, [2, 0, 5, 0]),
        (10, 0, [0.2, 0, 5, 0]),
        (0.5, 0, [4, 0, 5, 0]),
        (1e6, 0, [0, 0, 0.09, 0]),
        (1, 1.5, [0.5, 0, 3.5, 0]),
    ],
)
def test_a_story_is_told_in_its_own_time_but_no_pause_is_long(speed: float, reading_seconds: float, slept: list[float]) -> None:
    start = datetime(2026, 11, 25, tzinfo=UTC)
    moments = [0, 2, 2, 90_002, 90_000]  # the last one after the clock was put back
    story = [audit.Told(Position(1), start + timedelta(seconds=second), None, "") for second in moments]
    story += [audit.Told(Position(1), None, None, "As of")] * 2
    time = Time()
    for number, told in enumerate(auditing.paced(story, speed, now=time.now, sleep=time.sleep)):
        assert told is story[number]
        time.seconds += reading_seconds
    assert [round(seconds, 2) for seconds in time.slept] == slept


class Page(HTMLParser):
    """What a browser would make of it: elements, and the text inside them."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(home: Path) -> str:
    out = io.BytesIO()
    auditing.export(home, "html", out)
    return out.getvalue().decode()


def test_the_page_holds_every_generation_and_nothing_that_acts_or_comes_from_elsewhere(home: Path) -> None:
    text = page_of(home)
    page = Page(text)
    assert page.open == []
    tags = [tag for tag, _ in page.seen]
    assert tags.count("article") == 3 and tags.count("img") == 3
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(tags)
    assert all(not name.startswith("on") and name not in ("href", "srcset") for _, has in page.seen for name in has)
    for tag, has in page.seen:
        if tag == "img":
            source = has["src"] or ""
            assert source.startswith("data:image/jpeg;base64,") and has["loading"] == "lazy"
            assert base64.b64decode(source.partition(",")[2])[:2] == b"\xff\xd8"
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text and "http:" not in text
    shown = "".join(page.text)
    assert '<script>alert(1)</script> "&amp; \\u{202e}[2J </article>\n=1+1 逆光' in shown and "\u202e" not in text
    assert f"Asked byimaged {VERSION}" in shown.replace("\n", "")
    assert "tokens" not in shown and "Tokens" in shown and "$" in shown
    for job in jobs_of(home):
        assert job in shown
    assert KEY not in text and f"as of commit {verifying.seal(home).position}" in shown
    assert "prefers-color-scheme" in text or "color-scheme: light dark" in text
    assert "@media print" in text


def test_a_page_of_hundreds_of_generations_stays_small_and_flat(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    blob = store.put(picture("png", 256, 256))
    stories = []
    for number in range(200):
        one = one_job(2 + 5 * number, number=number + 1, prompt=f"fox {number}")
        made = msgspec.structs.replace(completed(job_id(number + 1)).images[0], original=blob.sha256)
        done = msgspec.structs.replace(completed(job_id(number + 1)), images=(made,))
        stories.append([*one[:4], msgspec.structs.replace(one[4], events=(done,))])
    written(tmp_path / "events", stories, NoReserve())
    text = page_of(tmp_path)
    assert len(text) < 4_000_000 and text.count("<article") == 200 and "content-visibility: auto" in text
    assert text.index("fox 199<") < text.index("fox 0<"), "newest first"


def test_no_cell_is_a_formula_and_every_row_has_every_column(home: Path) -> None:
    out = io.BytesIO()
    told = auditing.export(home, "csv", out)
    text = out.getvalue().decode("utf-8-sig")
    assert out.getvalue().startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert told.generations == len(rows) == 3 and all(None not in row and None not in row.values() for row in rows)
    failed, edited, evil = rows
    assert failed["prompt"] == "'=cmd|' /C calc'!A0" and failed["state"] == "failed"
    assert not any(cell.lstrip().startswith(tuple("=+-@")) for row in rows for cell in row.values())
    assert "=HYPERLINK" in failed["error"] and evil["prompt"].startswith("<script>") and "逆光" in evil["prompt"]
    assert edited["images"] == "2" and len(edited["sources"].split()) == 2 and float(edited["cost_usd"]) > 0
    assert int(evil["requested_at_commit"]) < int(evil["changed_at_commit"]) < int(edited["requested_at_commit"])


@pytest.mark.parametrize("start", ["=1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "＝1", "\n=1"])
def test_whatever_begins_like_a_formula_is_made_text(start: str) -> None:
    assert auditing._harmless_cell(start) == f"'{start}"
    assert auditing._harmless_cell("a=1") == "a=1" and auditing._harmless_cell(-3) == -3


def test_every_line_of_json_is_one_generation_with_its_digests_and_thumbnails(home: Path) -> None:
    out = io.BytesIO()
    auditing.export(home, "jsonl", out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["report"]["job_id"] for row in reversed(rows)] == jobs_of(home)
    edited = rows[1]
    assert [base64.b64decode(one)[:2] for one in edited["thumbnails"]] == [b"\xff\xd8"] * 2
    assert edited["report"]["usage"]["total_tokens"] > 0 and edited["report"]["images"][0]["sha256"]


def test_what_was_forgotten_is_exported_as_forgotten_and_its_blobs_are_not_missed(tmp_path: Path) -> None:
    bare = [msgspec.structs.replace(one, words=None) for one in one_job()]
    written(tmp_path / "events", [bare, [commit(7, WordsForgotten(job=job_id(1), positions=()))]], NoReserve())
    text = page_of(tmp_path)
    assert "(forgotten)" in text and "no preview" in text
    assert verifying.verify(tmp_path).is_sound
    with pytest.raises(Refused, match="forgotten"):
        auditing.request_of(tmp_path, job_id(1), "curl")


def attempts_of(home: Path, job: str) -> list[AttemptStarted]:
    events = (event for one in read_log(home / "events", None) for event in one.commit.events)
    return [event for event in events if isinstance(event, AttemptStarted) and event.job == job]


@pytest.mark.parametrize("which", [0, 1], ids=["json", "multipart"])
def test_the_rebuilt_request_sends_the_very_same_bytes(home: Path, tmp_path: Path, which: int) -> None:
    job = jobs_of(home)[which]
    (attempt,) = attempts_of(home, job)
    environment = {"OPENAI_API_KEY": KEY, "PATH": "/usr/bin:/bin"}
    for kind, command in (("curl", ["bash", "-e"]), ("python", [sys.executable])):
        with StandIn() as standin:
            script = auditing.request_of(home, job, kind)  # type: ignore[arg-type]
            assert KEY not in script and "exactly this body" in script and "COSTS MONEY" in script
            place = tmp_path / kind
            original = next(line for line in script.splitlines() if "127.0.0.1" in line)
            url = original[original.index("http://") : original.index("/images/")]
            place.write_text(script.replace(url, standin.url), "utf-8")
            done = subprocess.run([*command, str(place)], env=environment, capture_output=True, timeout=60, check=True)
            assert b"b64_json" in done.stdout
            (request,) = standin.requests
            assert digest(request.body) == attempt.body_sha256
            assert request.headers["authorization"] == f"Bearer {KEY}" and request.headers["openai-project"] == "proj_1"


def test_a_body_that_is_not_the_one_that_was_sent_is_said_to_be_another(tmp_path: Path) -> None:
    written(tmp_path / "events", [one_job()], NoReserve())
    script = auditing.request_of(tmp_path, job_id(1), "curl")
    assert f"ANOTHER body, SHA-256 {'ab' * 32}" in script and config.OPENAI_URL in script
    with pytest.raises(Refused, match="no job"):
        auditing.request_of(tmp_path, job_id(9), "curl")


def test_a_prompt_cannot_break_out_of_the_script(tmp_path: Path) -> None:
    prompt = '\'; touch /tmp/never; echo \'$(id) `id` \\ %s \n\r \\n \u0000 """ 逆光'
    job = requested(job_id(1), offline=True)
    written(
        tmp_path / "events",
        [[commit(2, job, words=said(prompt=prompt)), *one_job()[1:3], commit(5, reply(job_id(1)))]],
        NoReserve(),
    )
    script = auditing.request_of(tmp_path, job_id(1), "curl")
    body = script[script.index("{\n") : script.index("} | curl")] + "}"
    sent = subprocess.run(["bash", "-c", body], capture_output=True, timeout=60, check=True).stdout
    assert json.loads(sent)["prompt"] == prompt
    python = auditing.request_of(tmp_path, job_id(1), "python")
    head = python[: python.index("headers = {")] + "import sys; sys.stdout.buffer.write(body)"
    done = subprocess.run([sys.executable, "-c", head], capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["prompt"] == prompt


def test_a_generation_whose_source_is_gone_is_not_rebuilt(home: Path, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    shutil.rmtree(Places(copy).store)
    with pytest.raises(Refused, match="cannot be rebuilt"):
        auditing.request_of(copy, jobs_of(copy)[1], "python")
