"""What the real program writes into files and beside them, and how it tells of content credentials."""

import base64
import hashlib
import json
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.program import SECONDS_MAX, Stdio, environment, running
from tests.standin import Request, StandIn
from tests.tools.pictures_for_tests import picture, pixels
from tools.pictures import png_chunks
from tools.store import Store

KEY = "sk-test-canary-0123456789"
JAPANESE = "雪の中の狐、🦊と提灯。" * 20


def api(url: str, **more: str) -> dict[str, str]:
    return {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, **more}


def with_credentials(png: bytes) -> bytes:
    body = b"\0\0\0\x10jumb\0\0\0\x08c2pa"
    chunk = len(body).to_bytes(4, "big") + b"caBX" + body + zlib.crc32(body, zlib.crc32(b"caBX")).to_bytes(4, "big")
    return png[:33] + chunk + png[33:]


CREDENTIALED = with_credentials(picture("png", 1024, 1024))


def send_credentials(request: Request) -> None:
    reply = json.loads(request.good_reply())
    reply["data"] = [{"b64_json": base64.b64encode(CREDENTIALED).decode()}]
    request.reply(200, json.dumps(reply).encode())


def chunk_kinds(data: bytes) -> list[bytes]:
    return [chunk.kind for chunk in png_chunks(data)]


def test_a_copy_of_a_picture_with_credentials_says_so_and_the_original_is_kept(tmp_path: Path) -> None:
    with StandIn(send_credentials) as standin, running(tmp_path, **api(standin.url)) as program:
        report = program.ask("generate_image", prompt="x", size="1024x1024", quality="low")["result"]
        (image,) = report["images"]
        saved = Path(image["path"]).read_bytes()
        assert image["derived"] and b"MCP-Derived-From" in saved and b"caBX" in chunk_kinds(saved)
        assert Store.open(program.places.store).get(image["original_sha256"]) == CREDENTIALED
        (note,) = [warning for warning in report["warnings"] if "C2PA" in warning]
        assert image["original_sha256"] in note and "sidecar" in note
        looked_at = program.ask("get_metadata_from_image", image_path=image["path"])["result"]
        assert looked_at["content_credentials"] and looked_at["integrity"] == "unchanged"
        assert looked_at["metadata"]["MCP-Derived-From"] == f"sha256:{image['original_sha256']}"


def test_a_sidecar_leaves_the_file_as_it_came_and_tells_the_rest(tmp_path: Path, exiftool: list[str]) -> None:
    settings = {"OPENAI_IMAGE_EMBED_METADATA": "sidecar"}
    with StandIn(send_credentials) as standin, running(tmp_path, **api(standin.url, **settings)) as program:
        program.environment["OPENAI_IMAGE_EMBED_METADATA"] = "sidecar"
        report = program.ask("generate_image", prompt=JAPANESE, size="1024x1024", quality="low", output_path="fox.png")["result"]
        (image,) = report["images"]
        assert Path(image["path"]).read_bytes() == CREDENTIALED and not image["derived"]
        assert image["sha256"] == image["original_sha256"] == hashlib.sha256(CREDENTIALED).hexdigest()
        assert image["sidecar"] == image["path"] + ".xmp"
        done = subprocess.run(
            [*exiftool, "-j", "-XMP:all", image["sidecar"]], capture_output=True, timeout=SECONDS_MAX, check=True
        )
        (told,) = json.loads(done.stdout)
        assert told["Description"] == JAPANESE
        assert told["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
        assert report["job_id"] in done.stdout.decode()
        found = program.ask("get_metadata_from_image", image_path="fox.png")["result"]
        assert found["integrity"] == "unchanged" and found["history"]["job_id"] == report["job_id"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_not_a_pixel_of_what_the_api_sent_is_touched(kind: str, tmp_path: Path) -> None:
    with running(tmp_path, OPENAI_IMAGE_METADATA_LEVEL="full") as program:
        report = program.ask("generate_image", prompt=JAPANESE, output_format=kind, quality="low", size="1024x1024")["result"]
        (image,) = report["images"]
        original = Store.open(program.places.store).get(image["original_sha256"])
        saved = Path(image["path"]).read_bytes()
        assert saved != original and pixels(saved) == pixels(original)
        assert original[len(original) // 4 : len(original) * 3 // 4] in saved
        told = program.ask("get_metadata_from_image", image_path=image["path"])["result"]["metadata"]
        assert told["MCP-Prompt"] == JAPANESE and told["MCP-History-UUID"] == report["job_id"]


def test_a_changed_file_is_told_from_the_one_that_was_saved(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        report = program.ask("generate_image", prompt="x", quality="low")["result"]
        path = Path(report["images"][0]["path"])
        copy = path.with_name("copy.png")
        data = bytearray(path.read_bytes())
        copy.write_bytes(data)
        assert program.ask("get_metadata_from_image", image_path="copy.png")["result"]["integrity"] == "unchanged"
        place = data.index(b"Drawn offline")
        data[place] ^= 1
        copy.write_bytes(data)
        changed = program.ask("get_metadata_from_image", image_path="copy.png")["result"]
        assert changed["integrity"] == "changed" and changed["history"]["job_id"] == report["job_id"]
        foreign = path.with_name("foreign.png")
        foreign.write_bytes(picture("png"))
        unknown = program.ask("get_metadata_from_image", image_path="foreign.png")["result"]
        assert (unknown["integrity"], unknown["history"], unknown["metadata"]) == ("unknown", None, {})
        foreign.write_bytes(b"no picture")
        refusal = program.ask("get_metadata_from_image", image_path="foreign.png")["refused"]
        assert refusal["code"] == "bad_picture" and refusal["argument"] == "image_path"


def test_an_svg_that_does_more_than_draw_is_paid_for_and_kept_but_not_put_in_its_place(tmp_path: Path) -> None:
    script = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'

    def send_script(request: Request) -> None:
        reply = json.loads(request.good_reply())
        reply["data"] = [{"b64_json": base64.b64encode(script).decode()}]
        request.reply(200, json.dumps(reply).encode())

    with StandIn(send_script) as standin, running(tmp_path, **api(standin.url)) as program:
        report = program.ask(
            "generate_image", prompt="x", output_format="svg", model="gpt-image-2.6-flare", quality="low", size="1024x1024"
        )["result"]
        assert (report["state"], report["error_code"], report["billed"]) == ("failed", "not_saved", "yes")
        assert "<script>" in report["error"] and hashlib.sha256(script).hexdigest() in report["error"]
        assert not list(program.pictures.iterdir())
        good = program.ask("generate_image", prompt="x", output_format="svg", model="gpt-image-2.6-flare", quality="low")
        assert good["result"]["images"][0]["path"].endswith(".svg")


def test_several_pictures_in_one_answer_share_the_room_there_is(tmp_path: Path) -> None:
    settings = environment(tmp_path, IMAGED_INLINE_BYTES_MAX="60000")
    with running(tmp_path), Stdio(settings) as client:
        client.initialize()
        said = client.call("generate_image", prompt="x", sample_count=4, size="1024x1024", quality="low", return_base64=True)
        images = [part for part in said["content"] if part["type"] == "image"]
        assert len(images) == 4 and sum(len(part["data"]) for part in images) <= 60_000
        assert {part["mimeType"] for part in images} == {"image/jpeg"}
        assert sum("reduced preview" in warning for warning in said["structuredContent"]["warnings"]) == 4
