"""What is published is what the published schemas and the official tools want, and says of the program what is so."""

import errno
import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import IO, Any

import jsonschema
import pytest

from daemon import bridge, bundles
from daemon.config import Settings
from daemon.errors import BadConfiguration
from daemon.operations import OPERATIONS
from daemon.setup import Wish, setup
from daemon.setup_clients import CLIENTS
from daemon.version import VERSION
from tests.conftest import beside_python

REPOSITORY = "https://github.com/Some-One/pictures.git"
DATED = 1_700_000_001
LINUX = bundles.Target("linux", "x86_64")
KEY = "sk-proj-canary0123456789abcdefghij"

# How a host fills in what its user said, by the official package: prints the environment of the server.
FILL_IN = """
import { readFileSync } from "node:fs";
import { getMcpConfigForManifest } from "@anthropic-ai/mcpb/node";
const [manifest, userConfig] = process.argv.slice(2).map((text) => JSON.parse(text));
const systemDirs = { HOME: "/home/u" };
const found = await getMcpConfigForManifest({ manifest, extensionPath: "/ext", systemDirs, userConfig, pathSeparator: "/" });
console.log(JSON.stringify(found));
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """As PyInstaller lays it out: an executable, libraries, and links to files and folders among them."""
    root = tmp_path / "built" / "imaged"
    libraries = root / "_internal" / "pillow.libs"
    libraries.mkdir(parents=True)
    (root / "imaged").write_text("#!/bin/sh\n", "utf-8")
    (root / "imaged").chmod(0o755)
    (libraries / "libpng.so").write_bytes(b"png" * 1000)
    (libraries / "libpng.so").chmod(0o644)
    (root / "_internal" / "data.json").write_text("{}", "utf-8")
    (root / "_internal" / "data.json").chmod(0o640)
    (root / "_internal" / "libpng.so").symlink_to("pillow.libs/libpng.so")
    (root / "_internal" / "Current").symlink_to("pillow.libs")
    return root


def written(dist: Path, program: Path, repository: str | None = REPOSITORY) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The bundle, its manifest and server.json."""
    bundles.write(dist, program=program, repository=repository, dated=DATED, target=LINUX)
    (bundle,) = dist.glob("*.mcpb")
    with zipfile.ZipFile(bundle) as packed:
        manifest = json.loads(packed.read("manifest.json"))
    return bundle, manifest, json.loads((dist / "server.json").read_bytes())


def unpacked(bundle: Path, folder: Path) -> Path:
    with zipfile.ZipFile(bundle) as packed:
        packed.extractall(folder)
    return folder


def test_the_bundle_holds_the_whole_program_without_links_and_with_its_modes(tmp_path: Path, program: Path) -> None:
    bundle, _, _ = written(tmp_path / "dist", program)
    assert bundle.name == f"imaged-{VERSION}-linux-x86_64.mcpb"
    with zipfile.ZipFile(bundle) as packed:
        assert packed.testzip() is None
        members = packed.infolist()
        assert packed.read("server/_internal/libpng.so") == packed.read("server/_internal/Current/libpng.so") == b"png" * 1000
    modes = {member.filename: member.external_attr >> 16 for member in members}
    assert modes == {
        "manifest.json": stat.S_IFREG | 0o644,
        "server/_internal/Current/libpng.so": stat.S_IFREG | 0o644,
        "server/_internal/data.json": stat.S_IFREG | 0o644,
        "server/_internal/libpng.so": stat.S_IFREG | 0o644,
        "server/_internal/pillow.libs/libpng.so": stat.S_IFREG | 0o644,
        "server/imaged": stat.S_IFREG | 0o755,
    }
    assert list(modes) == sorted(modes)
    assert {member.date_time for member in members} == {(2023, 11, 14, 22, 13, 20)}
    assert {member.create_system for member in members} == {3}


def test_the_same_program_makes_the_same_bytes_wherever_and_whenever_it_was_built(tmp_path: Path, program: Path) -> None:
    first, _, _ = written(tmp_path / "one", program)
    moved = program.parent.parent / "elsewhere" / "built-again"
    moved.parent.mkdir()
    program.rename(moved)
    for path in sorted(moved.rglob("*.so")):
        os.utime(path, (1, 1), follow_symlinks=False)
    (moved / "_internal" / "data.json").chmod(0o600)  # another umask
    second, _, _ = written(tmp_path / "two", moved)
    assert second.read_bytes() == first.read_bytes()
    assert (tmp_path / "one" / "server.json").read_bytes() == (tmp_path / "two" / "server.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["clients", second.name, "server.json"]


def test_a_time_that_no_zip_can_hold_is_brought_within_what_it_can(tmp_path: Path, program: Path) -> None:
    for dated, year in ((0, 1980), (2**40, 2107)):
        bundles.write(tmp_path, program=program, dated=dated, target=LINUX)
        (bundle,) = tmp_path.glob("*.mcpb")
        with zipfile.ZipFile(bundle) as packed:
            assert {member.date_time[0] for member in packed.infolist()} == {year}


def test_the_official_validator_and_schema_accept_the_manifest(tmp_path: Path, program: Path, npm_packages: Path) -> None:
    package = npm_packages / "node_modules" / "@anthropic-ai" / "mcpb"
    schema = json.loads((package / "dist" / "mcpb-manifest-v0.3.schema.json").read_bytes())
    for name, repository in (("published", REPOSITORY), ("example", None)):
        bundle, manifest, _ = written(tmp_path / name, program, repository)
        jsonschema.Draft7Validator(schema).validate(manifest)
        command = [beside_python("node"), str(package / "dist" / "cli" / "cli.js"), "validate", "manifest.json"]
        folder = unpacked(bundle, tmp_path / name / "unpacked")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / manifest["server"]["entry_point"]).is_file()


def test_a_host_fills_in_what_its_user_said_and_leaves_the_rest_to_the_program(
    tmp_path: Path, program: Path, npm_packages: Path
) -> None:
    _, manifest, _ = written(tmp_path / "dist", program)
    script = npm_packages / "fill-in.mjs"  # where node finds the package
    script.write_text(FILL_IN, "utf-8")

    def filled_in(**said: str) -> dict[str, Any]:
        command = [beside_python("node"), str(script), json.dumps(manifest), json.dumps(said)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    nothing = filled_in()
    assert (nothing["command"], nothing["args"]) == ("/ext/server/imaged", ["mcp"])
    untouched = Settings.parse({}, home_dir=tmp_path)
    as_installed = Settings.parse(nothing["env"], home_dir=tmp_path)
    assert as_installed == untouched and not as_installed.can_draw
    env_file = tmp_path / ".config" / "imaged" / ".env"
    env_file.parent.mkdir(parents=True)
    env_file.write_text(f"OPENAI_API_KEY={KEY}\n", "utf-8")
    env_file.chmod(0o600)
    assert bridge.with_env_file({**nothing["env"], "HOME": str(tmp_path)})["OPENAI_API_KEY"] == KEY
    said = filled_in(api_key=KEY, output_directory="/p/絵", input_directory="/photos", model="gpt-image-1.5", backend="openai")
    settings = Settings.parse(said["env"], home_dir=tmp_path)
    assert settings.key is not None and settings.key.reveal() == KEY
    assert (str(settings.output_dir), [str(path) for path in settings.input_dirs]) == ("/p/絵", ["/photos"])
    assert settings.model == "gpt-image-1.5"
    assert Settings.parse(filled_in(backend="offline")["env"], home_dir=tmp_path).can_draw


def test_the_manifest_names_exactly_the_tools_that_models_are_offered(tmp_path: Path, program: Path) -> None:
    _, manifest, _ = written(tmp_path, program)
    offered = {name: operation.description for name, operation in OPERATIONS.items() if not operation.for_people}
    assert {tool["name"]: tool["description"] for tool in manifest["tools"]} == offered
    assert "generate_image" in offered and "stop_daemon" not in offered
    assert manifest["compatibility"] == {"platforms": ["linux"]} and manifest["version"] == VERSION
    sensitive = [name for name, asked in manifest["user_config"].items() if asked.get("sensitive")]
    assert sensitive == ["api_key"] and manifest["server"]["mcp_config"]["env"]["OPENAI_API_KEY"] == "${user_config.api_key}"


def test_the_published_schema_accepts_the_entry_for_the_registry(tmp_path: Path, program: Path) -> None:
    bundle, _, server = written(tmp_path, program)
    place = distribution("skillsaw").locate_file("skillsaw/schemas/mcp_registry/v2025_12_11/server.schema.json")
    schema = json.loads(Path(str(place)).read_bytes())
    assert server["$schema"] == schema["$id"]
    validator = jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())
    validator.validate(server)
    for fault in ({"description": "x" * 101}, {"name": "no-namespace"}, {"packages": [{"registryType": "mcpb"}]}):
        assert not validator.is_valid({**server, **fault}), fault
    (package,) = server["packages"]
    assert server["name"] == "io.github.Some-One/pictures" and server["version"] == package["version"] == VERSION
    assert server["repository"] == {"url": "https://github.com/Some-One/pictures", "source": "github"}
    release = f"https://github.com/Some-One/pictures/releases/download/v{VERSION}"
    assert package["identifier"] == f"{release}/{bundle.name}"
    assert package["fileSha256"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert package["transport"] == {"type": "stdio"}
    secret = {variable["name"]: variable["isSecret"] for variable in package["environmentVariables"]}
    assert [name for name in secret if secret[name]] == ["OPENAI_API_KEY"]


def test_every_setting_that_users_are_asked_for_is_one_that_the_program_knows(tmp_path: Path, program: Path) -> None:
    _, manifest, server = written(tmp_path, program)
    names = set(manifest["server"]["mcp_config"]["env"])
    (package,) = server["packages"]
    assert names == {variable["name"] for variable in package["environmentVariables"]}
    # `imaged setup` refuses a name that is no setting, and a value that cannot be one.
    given = {name: KEY if name == "OPENAI_API_KEY" else "" for name in names}
    outcome = setup(Wish("cursor", print_only=True, values=given), executable=["/x", "mcp"], environ={}, home=tmp_path)
    assert all(name in outcome.entry for name in names)
    (backend,) = (variable for variable in package["environmentVariables"] if variable["name"] == "IMAGED_BACKEND")
    for choice in backend["choices"]:
        Settings.parse({"IMAGED_BACKEND": choice}, home_dir=tmp_path)


def test_the_files_for_clients_are_what_setup_writes_into_an_empty_configuration(tmp_path: Path, program: Path) -> None:
    written(tmp_path, program)
    folder = tmp_path / "clients"
    (folder / "left-over.json").write_text("{}", "utf-8")
    written(tmp_path, program)
    extension = {name: "toml" if client.toml else "json" for name, client in CLIENTS.items()}
    expected = {f"{name}.{extension[name]}" for name in CLIENTS} | {"claude-mcp-add.txt", "README.txt"}
    assert {path.name for path in folder.iterdir()} == expected
    told = (folder / "README.txt").read_text("utf-8")
    for name, client in CLIENTS.items():
        text = (folder / f"{name}.{extension[name]}").read_text("utf-8")
        home = tmp_path / "home" / name
        made = setup(Wish(name), executable=[bundles.EXAMPLE_PROGRAM, "mcp"], environ={}, home=home)
        assert text == made.path.read_text("utf-8")
        entry = (tomllib if client.toml else json).loads(text)[client.container]["imaged"]
        assert (entry["command"], entry["args"]) == (bundles.EXAMPLE_PROGRAM, ["mcp"])
        assert f"{name}.{extension[name]}: {client.config_path({}, Path('~'), 'linux')}" in told
        assert str(client.config_path({}, Path("~"), "darwin")) in told
    line = shlex.split((folder / "claude-mcp-add.txt").read_text("utf-8"))
    assert line[:3] == ["claude", "mcp", "add"] and line[-4:] == ["imaged", "--", bundles.EXAMPLE_PROGRAM, "mcp"]
    assert line[line.index("--transport") + 1] == "stdio" and line[line.index("--scope") + 1] == "user"


def test_without_a_repository_the_entry_names_an_example_and_a_sentence_says_so(tmp_path: Path, program: Path) -> None:
    said = bundles.write(tmp_path, program=program, dated=DATED, target=LINUX)
    server = json.loads((tmp_path / "server.json").read_bytes())
    assert server["name"] == "io.github.example/imaged"
    assert any("an example and cannot be published" in sentence for sentence in said)
    said = bundles.write(tmp_path, program=program, repository=REPOSITORY, dated=DATED, target=LINUX)
    assert not any("example" in sentence for sentence in said)
    assert any("io.github.Some-One/pictures" in sentence for sentence in said)


@pytest.mark.parametrize(
    "repository",
    [
        "https://gitlab.com/a/b",
        "http://github.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b/c",
        "https://github.com/a b/c",
        "git@github.com:a/b.git",
    ],
)
def test_a_repository_that_the_registry_cannot_check_is_refused(tmp_path: Path, program: Path, repository: str) -> None:
    with pytest.raises(BadConfiguration, match=r"give a URL such as https://github\.com/example/imaged"):
        bundles.write(tmp_path / "dist", program=program, repository=repository, target=LINUX)
    assert not (tmp_path / "dist").exists()


def test_what_is_no_built_program_is_refused_and_leaves_no_bundle(tmp_path: Path, program: Path) -> None:
    dist = tmp_path / "dist"

    def refused(why: str, target: bundles.Target = LINUX) -> None:
        with pytest.raises(BadConfiguration, match=why):
            bundles.write(dist, program=program, target=target)
        assert not dist.exists()

    refused("does not run on 'win32'", bundles.Target("win32", "AMD64"))
    odd = program / "_internal" / "odd"
    odd.symlink_to("nowhere")
    refused("odd leads nowhere")
    odd.unlink()
    (tmp_path / "private").write_text("not part of the program", "utf-8")
    odd.symlink_to(tmp_path / "private")
    refused("private, which cannot be bundled")
    odd.unlink()
    odd.symlink_to("..")
    refused("which cannot be bundled")
    odd.unlink()
    os.mkfifo(odd)
    refused("neither a file nor a folder")
    odd.unlink()
    (program / "imaged").chmod(0o644)
    refused("holds no executable imaged")


def test_a_bundle_that_cannot_be_finished_leaves_the_earlier_one(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, _ = written(tmp_path, program)
    before = bundle.read_bytes()
    (program / "_internal" / "aaa").write_bytes(b"new")

    def full_disk(source: IO[bytes], copy: IO[bytes]) -> None:
        copy.write(source.read(3))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full_disk)
    with pytest.raises(OSError, match="No space"):
        bundles.write(tmp_path, program=program, dated=DATED, target=LINUX)
    assert bundle.read_bytes() == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
