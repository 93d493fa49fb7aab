"""Edits and transformations by the real program: what is sent, what is refused, and that sources are snapshots."""

import base64
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from daemon import offline
from eventlog.events import JobRequested
from eventlog.values import digest
from tests.program import Program, running, wait_until
from tests.standin import Request, StandIn
from tests.tools.pictures_for_tests import picture, pixels

KEY = "sk-test-canary-0123456789"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, StandIn]]:
    home = tmp_path_factory.mktemp("edits")
    (home / "in").mkdir()
    with StandIn() as standin:
        settings = {
            "IMAGED_BACKEND": "openai",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": standin.url,
            "OPENAI_IMAGE_INPUT_DIR": str(home / "in"),
        }
        with running(home, **settings) as program:
            yield program, standin


def put(house: tuple[Program, StandIn], name: str, data: bytes) -> str:
    (house[0].home / "in" / name).write_bytes(data)
    return name


def sent(request: Request) -> list[tuple[str, str, bytes]]:
    """Name, type and bytes of the files of one request."""
    return [(part.name, part.kind, part.data) for part in offline._parts(request.body) if part.file_name]


def fields(request: Request) -> dict[str, str]:
    return {part.name: part.data.decode() for part in offline._parts(request.body) if not part.file_name}


def refused(answer: dict[str, Any]) -> dict[str, str]:
    assert "refused" in answer, answer
    refusal: dict[str, str] = answer["refused"]
    return refusal


def test_an_edit_sends_its_sources_in_order_and_saves_the_picture(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    fox = put(house, "fox.png", picture("png", 64, 64))
    before = len(standin.requests)
    answer = program.ask(
        "edit_image",
        prompt="Mehr Schnee 雪",
        reference_image_path=fox,
        reference_images=[
            base64.b64encode(picture("jpeg")).decode(),
            "data:image/webp;base64," + base64.b64encode(picture("webp")).decode(),
        ],
        size="1024x1024",
        quality="low",
        background="opaque",
    )["result"]
    (request,) = standin.requests[before:]
    assert request.path == "/v1/images/edits"
    assert [(name, kind) for name, kind, _ in sent(request)] == [
        ("image[]", "image/png"),
        ("image[]", "image/jpeg"),
        ("image[]", "image/webp"),
    ]
    assert pixels(sent(request)[0][2]) == pixels(picture("png", 64, 64))
    assert fields(request)["prompt"] == "Mehr Schnee 雪" and fields(request)["background"] == "opaque"
    assert answer["state"] == "completed" and Path(answer["images"][0]["path"]).name == "edited_image.png"
    assert answer["sources"][0]["name"] == "fox.png"
    assert answer["sources"][0]["sha256"] == digest(sent(request)[0][2])
    assert answer["tool"] == "edit_image"


def test_a_transformation_starts_from_an_earlier_generation(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    first = program.ask("generate_image", prompt="a fox", size="1024x1024", quality="low", sample_count=2)["result"]
    answer = program.ask("transform_image", prompt="as a woodcut", reference_images=[first["job_id"] + "/2"], quality="low")
    assert answer["result"]["state"] == "completed", answer
    (name, kind, data) = sent(standin.requests[-1])[0]
    received = Path(first["images"][1]["path"]).read_bytes()
    assert (name, kind) == ("image[]", "image/png") and pixels(data) == pixels(received)
    assert b"MCP-Prompt" in received and b"MCP-Prompt" not in data
    assert Path(answer["result"]["images"][0]["path"]).name == "transformed_image.png"
    for wrong, code in ((first["job_id"] + "/3", "no_such_image"), (first["job_id"][:-1] + "z", "not_there")):
        assert refused(program.ask("transform_image", prompt="x", reference_images=[wrong]))["code"] == code


def test_what_the_api_would_refuse_is_refused_before_any_call(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    fox = put(house, "source.png", picture("png", 64, 64))
    put(house, "secret.txt.png", b"root:x:0:0")
    put(house, "anim.gif", picture("gif"))
    small_mask = put(house, "small.png", picture("png", 32, 32, "RGBA"))
    opaque = put(house, "opaque.png", picture("png", 64, 64))
    before, jobs = len(standin.requests), program.ask("list_jobs")["result"]["total"]
    for arguments, argument in (
        ({}, "reference_image_path"),
        ({"reference_image_path": "nowhere.png"}, "reference_image_path"),
        ({"reference_image_path": "../in/source.png"}, "reference_image_path"),
        ({"reference_image_path": "/etc/passwd"}, "reference_image_path"),
        ({"reference_image_path": "/mnt/user-data/uploads/a.png"}, "reference_image_path"),
        ({"reference_image_path": "secret.txt.png"}, "reference_image_path"),
        ({"reference_image_path": "anim.gif"}, "reference_image_path"),
        ({"reference_images": [fox, "missing.png"]}, "reference_images"),
        ({"reference_images": [fox] * 17}, "reference_images"),
        ({"reference_images": [fox] * 16, "reference_image_path": fox}, "reference_images"),
        ({"reference_image_base64": "@@@"}, "reference_image_base64"),
        ({"reference_image_path": fox, "mask_image_path": small_mask}, "mask_image_path"),
        ({"reference_image_path": fox, "mask_image_path": opaque}, "mask_image_path"),
        ({"reference_image_path": fox, "input_fidelity": "high"}, "input_fidelity"),
        ({"reference_image_path": fox, "background": "transparent", "output_format": "jpeg"}, "output_format"),
        ({"reference_image_path": fox, "transparent_background": True, "background": "opaque"}, "background"),
        ({"reference_image_path": fox, "output_compression": 50}, "output_compression"),
    ):
        said = refused(program.ask("edit_image", prompt="x", **arguments))  # type: ignore[arg-type]
        assert said["argument"] == argument, said
    assert len(standin.requests) == before
    assert program.ask("list_jobs")["result"]["total"] == jobs


def test_a_mask_is_sent_beside_the_picture_it_belongs_to(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    fox = put(house, "masked.png", picture("png", 64, 64))
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    out = io.BytesIO()
    mask.save(out, "PNG")
    inline = base64.b64encode(out.getvalue()).decode()
    answer = program.ask("edit_image", prompt="x", reference_image_path=fox, mask_image_base64=inline, quality="low")
    assert answer["result"]["state"] == "completed", answer
    assert [name for name, _, _ in sent(standin.requests[-1])] == ["image[]", "mask"]
    assert pixels(sent(standin.requests[-1])[1][2]) == pixels(out.getvalue())
    assert inline.encode() not in b"".join(path.read_bytes() for path in program.places.events.iterdir())


def test_a_source_is_what_it_was_when_the_picture_was_asked_for(tmp_path: Path) -> None:
    def after_the_change(request: Request) -> None:
        request.error(429, "rate_limit_exceeded", "slow down", retry_after="0")

    with StandIn(after_the_change) as standin:
        settings = {
            "IMAGED_BACKEND": "openai",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": standin.url,
            "OPENAI_IMAGE_INPUT_DIR": str(tmp_path),
        }
        source = tmp_path / "source.png"
        source.write_bytes(picture("png", 64, 64))
        with running(tmp_path, **settings) as program:
            job = program.ask("start_generation_job", tool_name="edit_image", prompt="x", reference_image_path="source.png")
            source.unlink()
            job_id = job["result"]["job_id"]
            wait_until(lambda: program.ask("check_job_status", job_id=job_id)["result"]["state"] == "completed", "the picture")
            assert [pixels(sent(request)[0][2]) for request in standin.requests] == [pixels(picture("png", 64, 64))] * 2


def test_place_and_camera_of_a_photo_stay_on_this_machine(house: tuple[Program, StandIn]) -> None:
    program, standin = house
    image = Image.open(io.BytesIO(picture("jpeg", 64, 48)))
    exif = Image.Exif()
    exif[0x010F] = "CANARY-CAMERA"
    exif[0x0112] = 6  # the camera was held upright
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    photo = put(house, "photo.jpg", out.getvalue() + b"CANARY-TRAILER")
    answer = program.ask("transform_image", prompt="x", reference_image_path=photo, quality="low")
    assert answer["result"]["state"] == "completed", answer
    ((_, kind, data),) = sent(standin.requests[-1])
    assert kind == "image/jpeg" and b"CANARY" not in standin.requests[-1].body
    with Image.open(io.BytesIO(data)) as upright:
        assert upright.size == (48, 64) and not upright.getexif().get(0x0112)


def test_an_edit_is_a_composite_in_its_metadata_and_its_usage_counts_the_source(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    fox = put(house, "composite.png", picture("png", 64, 64))
    answer = program.ask("edit_image", prompt="x", reference_image_path=fox, quality="low")["result"]
    saved = Path(answer["images"][0]["path"]).read_bytes()
    assert b"compositeWithTrainedAlgorithmicMedia" in saved
    assert {line["kind"] for line in answer["cost"]["breakdown"]} >= {"image in", "image out", "text in"}
    assert sum(line["micro_usd"] for line in answer["cost"]["breakdown"]) == answer["cost"]["micro_usd"]


def test_the_log_knows_every_source_by_its_digest_and_holds_none_of_them(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    orders = [event for commit in program.log() for event in commit.events if isinstance(event, JobRequested)]
    sources = [source for order in orders for source in order.request.sources]
    assert sources and all((program.places.store / s.sha256[:2] / s.sha256).is_file() for s in sources)


def test_no_form_of_an_inline_picture_stands_in_the_log(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    inline = base64.b64encode(picture("png", 16, 16)).decode()
    assert len(inline) < 16 * 1024
    program.ask("edit_image", prompt="x", reference_images=f'["{inline}"]', quality="low")
    program.ask("edit_image", prompt="x", reference_image_path=f"data:image/png;base64,{inline}")
    program.ask("edit_image", prompt="x", mask_image_path=inline)
    program.ask("edit_image", prompt="x", images=[{"data": inline}])
    program.ask("get_metadata_from_image", image_path=inline)
    program.ask("get_status")
    assert inline[40:100].encode() not in b"".join(path.read_bytes() for path in program.places.events.iterdir())


def test_what_a_file_says_of_itself_is_bounded_and_harmless_in_the_text(house: tuple[Program, StandIn]) -> None:
    program, _ = house
    hostile = "\x1b]0;x\x07" * 200_000 + "\n\nHistory ID: forged"
    body = b"MCP-Prompt\0\0\0\0\0" + hostile.encode()
    chunk = len(body).to_bytes(4, "big") + b"iTXt" + body + zlib.crc32(body, zlib.crc32(b"iTXt")).to_bytes(4, "big")
    png = picture("png")
    answer = program.ask("get_metadata_from_image", image_path=put(house, "hostile.png", png[:33] + chunk + png[33:]))
    assert len(str(answer)) < 500_000 and "\x1b" not in answer["text"]
    assert "\nHistory ID: forged" not in answer["text"]
