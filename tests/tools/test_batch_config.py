"""What a batch file may say, every fault by its place, and names that stay the same as long as the picture does."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.values import Picture, Sha256
from tools import batch_config
from tools.batch_config import BatchJob, Fault, Pace, Retries, Sources

EXAMPLES = Path(__file__).parent.parent / "examples"


def parsed(*jobs: Any, **rest: Any) -> batch_config.BatchFile:
    return batch_config.parse(json.dumps({"jobs": list(jobs), **rest}).encode())


def only(**job: Any) -> BatchJob:
    file = parsed({"prompt": "A fox", **job})
    assert not file.faults, file.faults
    (found,) = file.jobs
    return found


def sentences(file: batch_config.BatchFile) -> list[str]:
    assert file.faults, "it has no fault"
    return [fault.sentence for fault in file.faults]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_are_understood_whole(path: Path) -> None:
    file = batch_config.parse(path.read_bytes())
    assert (file.faults, file.warnings) == ((), ())
    assert len(file.jobs) == len(json.loads(path.read_bytes())["jobs"])


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.json")} >= {"basic", "edit", "gpt-image-2", "everything"}


def test_everything_that_can_be_said_is_kept() -> None:
    file = batch_config.parse((EXAMPLES / "everything.json").read_bytes())
    assert file.jobs[0] == BatchJob(
        index=0,
        tool="generate_image",
        prompt="A paper crane",
        output_path="cranes/crane.webp",
        model="gpt-image-2.5-flare",
        size="1024x1536",
        quality="medium",
        output_format="webp",
        background="transparent",
        output_compression=90,
        moderation="low",
        sample_count=2,
        return_base64=True,
    )
    assert file.jobs[1].references == ("inputs/crane.png", "inputs/paper.png")
    assert (file.jobs[1].mask, file.jobs[1].background, file.jobs[2].markup) == (
        "inputs/crane-mask.png",
        "opaque",
        "inputs/crane-markup.png",
    )
    assert (file.output_dir, file.max_concurrent, file.timeout_ms) == ("~/cranes", 3, 1_200_000)
    assert file.retries == Retries(retries_max=3, delay_ms=2000, on_errors=("rate_limit", "timeout", "server_error"))


def test_what_is_not_said_has_the_defaults_of_the_earlier_program() -> None:
    file = parsed({"prompt": "A fox"}, {"prompt": "An owl", "output_format": "jpeg"})
    assert file.retries == Retries(retries_max=2, delay_ms=5000, on_errors=("rate_limit", "timeout"))
    assert file.jobs[0] == BatchJob(index=0, tool="generate_image", prompt="A fox", output_path="batch_1.png")
    assert file.jobs[1].output_path == "batch_2.jpg"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("size", "big", 'jobs[0].size is "big"; allowed is auto or WIDTHxHEIGHT in pixels, such as 1024x1024.'),
        ("quality", "best", 'jobs[0].quality is "best"; allowed is auto, low, medium, high, xhigh, max.'),
        ("moderation", "medium", 'jobs[0].moderation is "medium"; allowed is auto, low.'),
        ("moderation", "high", 'jobs[0].moderation is "high"; allowed is auto, low.'),
        ("sample_count", 1.5, "jobs[0].sample_count is 1.5; allowed is a whole number from 1 to 10."),
        ("sample_count", 0, "jobs[0].sample_count is 0; allowed is a whole number from 1 to 10."),
        ("sample_count", 11, "jobs[0].sample_count is 11; allowed is a whole number from 1 to 10."),
        ("sample_count", True, "jobs[0].sample_count is true; allowed is a whole number from 1 to 10."),
        ("output_format", "bmp", 'jobs[0].output_format is "bmp"; allowed is png, webp, jpeg, gif, svg.'),
        ("output_compression", 101, "jobs[0].output_compression is 101; allowed is a whole number from 0 to 100."),
        ("background", "red", 'jobs[0].background is "red"; allowed is auto, opaque, transparent.'),
        ("transparent_background", "yes", 'jobs[0].transparent_background is "yes"; allowed is true or false.'),
        ("return_base64", 1, "jobs[0].return_base64 is 1; allowed is true or false."),
        ("operation", "paint", 'jobs[0].operation is "paint"; allowed is generate, edit, transform.'),
        ("prompt", 7, "jobs[0].prompt is 7; allowed is text."),
        ("output_path", "", 'jobs[0].output_path is ""; allowed is a file name.'),
        ("model", "", 'jobs[0].model is ""; allowed is a name such as'),
        ("size", "\x1b[2J", "jobs[0].size is "),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_is_allowed(field: str, value: object, told: str) -> None:
    (sentence,) = sentences(parsed({"prompt": "A fox", field: value}))
    assert sentence.startswith(told) and sentence.isprintable()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("max_concurrent", 11, "max_concurrent is 11; allowed is a whole number from 1 to 10."),
        ("timeout", 999, "timeout is 999; allowed is a whole number from 1,000 to 3,600,000 (milliseconds)."),
        ("output_dir", 5, "output_dir is 5; allowed is the path of a folder."),
        ("retry_policy", [], "retry_policy is []; allowed is an object with max_retries, retry_delay_ms, retry_on_errors."),
        ("retry_policy", {"max_retries": 6}, "retry_policy.max_retries is 6; allowed is a whole number from 0 to 5."),
        (
            "retry_policy",
            {"retry_delay_ms": 99},
            "retry_policy.retry_delay_ms is 99; allowed is a whole number from 100 to 60,000 (milliseconds).",
        ),
        ("retry_policy", {"retry_on_errors": [""]}, 'retry_policy.retry_on_errors is [""]; allowed is a list of texts'),
    ],
)
def test_a_wrong_value_of_the_whole_file_is_named_too(field: str, value: object, told: str) -> None:
    (sentence,) = sentences(parsed({"prompt": "A fox"}, **{field: value}))
    assert sentence.startswith(told)


def test_all_faults_are_told_together_and_by_their_jobs() -> None:
    file = parsed({"prompt": "A fox", "size": "x", "quality": "y"}, {"prompt": "An owl"}, {"size": "auto"}, 3, timeout=1)
    assert [fault.job for fault in file.faults] == [-1, 0, 0, 2, 3]
    assert [job.index for job in file.jobs] == [1]


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({}, "jobs[0] has no prompt; say what to draw."),
        ({"prompt": None}, "jobs[0] has no prompt; say what to draw."),
        ({"prompt": "x", "operation": "edit"}, "jobs[0] has no reference_image_path; operation edit needs a picture"),
        ({"prompt": "x", "operation": "transform"}, "jobs[0] has no reference_image_path; operation transform needs"),
        ({"prompt": "x", "reference_image_path": "a.png"}, "jobs[0].reference_image_path is given, but operation is generate"),
        ({"prompt": "x", "reference_images": ["a.png"]}, "jobs[0].reference_images is given, but operation is generate"),
        ({"prompt": "x", "mask_image_path": "a.png"}, "jobs[0].mask_image_path is given, but operation is generate"),
        (
            {"prompt": "x", "operation": "transform", "reference_image_path": "a.png", "mask_image_path": "m.png"},
            "jobs[0].mask_image_path is given, but operation is transform",
        ),
        ({"prompt": "x", "transparent_background": True, "background": "opaque"}, "jobs[0].transparent_background is true, but"),
    ],
)
def test_what_does_not_go_together_is_refused(job: dict[str, Any], told: str) -> None:
    (sentence,) = sentences(parsed(job))
    assert sentence.startswith(told)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "It is not JSON: Expecting value at line 1, column 1."),
        (b'{"jobs": [\n  {"prompt": "x",}]}', "at line 2, column 18."),
        (b"[]", "It holds []; a batch file is an object such as"),
        (b"\xff\xfe{", "It is not text in UTF-8: byte 0 does not fit"),
        (b"[" * 100_000, "It is not JSON that can be read: it is nested too deeply"),
        (b"1" * 10_000, "It is not JSON that can be read"),
        (b"{}", "The file has no jobs; add"),
        (b'{"jobs": null}', "The file has no jobs; add"),
        (b'{"jobs": []}', "jobs is []; allowed is a list of 1 to 100 jobs."),
        (b'{"jobs": "x"}', 'jobs is "x"; allowed is a list of 1 to 100 jobs.'),
    ],
)
def test_what_is_no_batch_file_is_refused_with_one_sentence(data: bytes, told: str) -> None:
    (sentence,) = sentences(batch_config.parse(data))
    assert told in sentence


def test_a_hundred_jobs_are_allowed_and_one_more_is_not() -> None:
    assert len(parsed(*[{"prompt": "A fox"}] * 100).jobs) == 100
    assert "allowed is a list of 1 to 100 jobs" in sentences(parsed(*[{"prompt": "A fox"}] * 101))[0]


def test_an_unknown_key_is_ignored_with_a_warning_that_names_the_nearest() -> None:
    file = parsed({"prompt": "A fox", "qualty": "low", "zzz": 1, "a\x1b": 1}, max_concurent=3, retry_policy={"retries": 1})
    assert not file.faults and len(file.jobs) == 1
    assert file.warnings == (
        "max_concurent is not known and is ignored; did you mean max_concurrent?",
        "retry_policy.retries is not known and is ignored; did you mean max_retries?",
        "jobs[0].qualty is not known and is ignored; did you mean quality?",
        "jobs[0].zzz is not known and is ignored.",
        "jobs[0].a? is not known and is ignored.",
    )


def test_files_of_the_earlier_program_are_read_as_leniently_as_there() -> None:
    file = batch_config.parse(
        b'\xef\xbb\xbf{"jobs":[{"prompt":"x","quality":"HIGH","sample_count":2.0,"size":null}],"timeout":1e3}'
    )
    assert not file.faults and not file.warnings
    assert (file.jobs[0].quality, file.jobs[0].sample_count, file.jobs[0].size, file.timeout_ms) == ("high", 2, "auto", 1000)


def test_input_fidelity_means_nothing_without_a_source_and_says_so() -> None:
    file = parsed({"prompt": "x", "input_fidelity": "high"})
    assert file.jobs[0].input_fidelity is None
    assert file.warnings == ("jobs[0].input_fidelity is ignored: there is no picture that operation generate could keep to.",)
    assert only(operation="edit", reference_image_path="a.png", input_fidelity="high").input_fidelity == "high"


def test_transparency_has_two_names_and_one_meaning() -> None:
    assert only(transparent_background=True).background == "transparent"
    assert only(background="transparent").background == "transparent"
    assert only(transparent_background=False).background == "auto"
    assert only(transparent_background=True, background="auto").background == "transparent"


def test_the_command_line_comes_before_the_file_before_the_environment_before_the_default() -> None:
    said, silent = parsed({"prompt": "x"}, max_concurrent=3, timeout=3000), parsed({"prompt": "x"})
    environ = {"OPENAI_BATCH_MAX_CONCURRENT": "5", "OPENAI_BATCH_TIMEOUT": "5000"}
    assert batch_config.pace(said, environ, max_concurrent=7, timeout_ms=7000) == (Pace(7, 7000), ())
    assert batch_config.pace(said, environ, max_concurrent=None, timeout_ms=None) == (Pace(3, 3000), ())
    assert batch_config.pace(silent, environ, max_concurrent=None, timeout_ms=None) == (Pace(5, 5000), ())
    assert batch_config.pace(silent, {}, max_concurrent=None, timeout_ms=None) == (Pace(2, 600_000), ())
    assert batch_config.pace(silent, {"OPENAI_BATCH_TIMEOUT": " "}, max_concurrent=None, timeout_ms=None) == (
        Pace(2, 600_000),
        (),
    )


@pytest.mark.parametrize("value", ["many", "0", "11", "-1", "2.5", "٣", "1" * 5000])
def test_a_wrong_variable_is_named_unless_somebody_else_decides(value: str) -> None:
    environ = {"OPENAI_BATCH_MAX_CONCURRENT": value}
    _, (fault,) = batch_config.pace(parsed({"prompt": "x"}), environ, max_concurrent=None, timeout_ms=None)
    assert fault.job == batch_config.WHOLE_FILE
    assert fault.sentence.startswith("OPENAI_BATCH_MAX_CONCURRENT is ") and "from 1 to 10" in fault.sentence
    assert batch_config.pace(parsed({"prompt": "x"}), environ, max_concurrent=1, timeout_ms=None)[1] == ()


@pytest.mark.parametrize(
    ("pattern", "code", "message", "wanted"),
    [
        ("rate_limit", "rate_limited", "", True),
        ("rate_limit", "", "Rate limit reached for gpt-image-2", True),
        ("RATE-LIMIT", "rate_limited", "", True),
        ("rate limit", "rate_limited", "", True),
        ("timeout", "", "Request timed out.", True),
        ("Timeout", "not_sent", "OpenAI could not be reached: timeout", True),
        ("timeout", "rate_limited", "", False),
        ("server_error", "server_error", "", True),
        ("rate_limit", "moderation_blocked", "said no", False),
    ],
)
def test_an_error_is_matched_as_people_write_it(pattern: str, code: str, message: str, wanted: bool) -> None:
    assert Retries(on_errors=(pattern,)).wants(code, message) is wanted


def test_without_patterns_nothing_is_tried_again() -> None:
    assert not Retries(on_errors=()).wants("rate_limited", "Rate limit reached")


def picture(digit: str) -> Picture:
    return Picture(sha256=Sha256(digit * 64), size_bytes=1, width=1, height=1, format="png")


def names(*jobs: BatchJob, **changes: Any) -> tuple[str, ...]:
    where = {"output_dir": "/pictures", "endpoint": "https://api.openai.com/v1", "run": "", "sources": Sources(), **changes}
    sources = where.pop("sources")
    model = where.pop("default_model", "gpt-image-2")
    pairs = [(job, batch_config.request(job, default_model=model, sources=sources)) for job in jobs]
    return batch_config.identities(pairs, **where)


def test_a_job_keeps_its_name_whatever_is_put_in_front_of_it() -> None:
    fox, owl = only(output_path="a.png"), only(prompt="An owl", output_path="b.png")
    assert names(fox)[0] == names(owl, fox)[1] and len(set(names(fox, owl))) == 2


def test_jobs_that_are_alike_are_told_apart() -> None:
    fox = only(output_path="a.png")
    first, second, third = names(fox, fox, fox)
    assert len({first, second, third}) == 3
    assert names(fox, fox) == (first, second)


@pytest.mark.parametrize(
    "changes",
    [
        {"output_dir": "/elsewhere"},
        {"endpoint": "offline"},
        {"run": "0123abcd"},
        {"default_model": "gpt-image-2.5-flare"},
        {"sources": Sources(references=(picture("a"),))},
        {"sources": Sources(mask=picture("a"))},
        {"sources": Sources(markup=picture("a"))},
    ],
)
def test_another_place_or_picture_is_another_job(changes: dict[str, Any]) -> None:
    assert names(only()) != names(only(), **changes)


def test_another_content_of_the_same_source_file_is_another_job() -> None:
    job = only(operation="edit", reference_image_path="a.png")
    first, second = (names(job, sources=Sources(references=(picture(digit),))) for digit in "ab")
    assert first != second


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "An owl"},
        {"output_path": "other.png"},
        {"model": "gpt-image-1.5"},
        {"size": "1024x1024"},
        {"quality": "low"},
        {"output_format": "webp", "output_path": "batch_1.png"},
        {"background": "opaque"},
        {"output_format": "jpeg", "output_compression": 50},
        {"moderation": "low"},
        {"sample_count": 2},
    ],
)
def test_another_parameter_is_another_job(changes: dict[str, Any]) -> None:
    assert names(only()) != names(only(**changes))


def test_what_does_not_change_the_picture_does_not_change_the_job() -> None:
    assert names(only()) == names(only(return_base64=True)) == names(only(model="gpt-image-2"))


def test_names_do_not_change_from_one_version_to_the_next() -> None:
    """They stand in people's logs as keys: another text here, and a rerun after an upgrade pays for everything again."""
    (identity,) = names(only(size="1024x1024", quality="low"))
    golden = "batch-105f51bcda2898a81bd6637761f7093409e23a64be158ae4679bf81f39f709d2"
    assert (batch_config.key(identity, 0), batch_config.key(identity, 3)) == (golden, golden + "-3")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_no_value_of_any_field_is_more_than_a_fault(value: object) -> None:
    job = dict.fromkeys(("prompt", "size", "quality", "sample_count", "reference_images", "background"), value)
    file = batch_config.parse(json.dumps({"jobs": [job, value], "retry_policy": value, "timeout": value}).encode())
    assert all(isinstance(fault, Fault) and fault.sentence.isprintable() for fault in file.faults)
    assert batch_config.parse(json.dumps(value).encode()).faults


@given(st.binary())
def test_no_bytes_are_more_than_a_fault(data: bytes) -> None:
    assert batch_config.parse(data).faults
