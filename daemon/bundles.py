"""What is published beside the executable: the MCPB bundle, the registry's `server.json`, and what each client is told.

Rule: nothing here is written twice. Tools come from the table of operations, what belongs into a client's file from
`imaged setup --print`, the settings a user is asked for from `_ASKED`; and the same program makes the same bytes.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from platform import machine
from typing import NamedTuple

from daemon import setup as putting
from daemon.config import DEFAULT_MODEL
from daemon.errors import BadConfiguration
from daemon.operations import OPERATIONS
from daemon.setup_clients import CLIENTS, NAME
from daemon.version import VERSION

DESCRIPTION = "Draws and edits pictures through OpenAI's image API, and never loses one that you paid for."
EXAMPLE_REPOSITORY = f"https://github.com/example/{NAME}"
EXAMPLE_PROGRAM = f"/absolute/path/to/{NAME}/{NAME}"
SERVER_SCHEMA = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
PLATFORMS = ("linux", "darwin")  # as MCPB names them; Python's names are the same

_ZIP_BEGINS, _ZIP_ENDS = 315532800, 4354819198  # 1980 and 2107 in seconds since 1970: a zip knows no other years
_REPOSITORY = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/([A-Za-z0-9._-]+?)(?:\.git)?/?")


class Target(NamedTuple):
    """What the program runs on: one of PLATFORMS, and the processor as the system names it."""

    platform: str
    machine: str


class Asked(NamedTuple):
    """One setting that a client asks its user for. `kind` is MCPB's; without a default it is left as the program has it."""

    variable: str
    name: str
    title: str
    description: str
    kind: str = "string"
    default: str = ""
    choices: tuple[str, ...] = ()
    secret: bool = False


_ASKED = (
    Asked(
        "OPENAI_API_KEY",
        "api_key",
        "OpenAI API key",
        "Pictures are charged to its account. May stay empty: the key is then read from ~/.config/imaged/.env, and the offline "
        "backend needs none.",
        secret=True,
    ),
    Asked(
        "OPENAI_IMAGE_OUTPUT_DIR",
        "output_directory",
        "Folder for pictures",
        "Where pictures are saved, and the only place they can go. Empty: openai-images in your Downloads.",
        kind="directory",
    ),
    Asked(
        "OPENAI_IMAGE_INPUT_DIR",
        "input_directory",
        "Folder of pictures to edit",
        "Where source pictures may be read from, besides the folder above. Empty: from nowhere else.",
        kind="directory",
    ),
    Asked(
        "OPENAI_IMAGE_MODEL",
        "model",
        "Model",
        f"The model of calls that name none. Empty: {DEFAULT_MODEL}.",
    ),
    Asked(
        "IMAGED_BACKEND",
        "backend",
        "Backend",
        "openai, or offline to try it without a key: placeholders are drawn on this machine and cost nothing.",
        default="openai",
        choices=("openai", "offline"),
    ),
)


def write(
    dist: Path, *, program: Path, repository: str | None = None, dated: int = 0, target: Target | None = None
) -> tuple[str, ...]:
    """Writes the bundle of `program`, `server.json` and `clients/` into `dist`; what was made, in sentences. Blocking.

    `program` is the folder that PyInstaller made, `repository` the URL of the one that publishes it, `dated` the time of
    everything in the bundle, in seconds since 1970 (SOURCE_DATE_EPOCH). `target` is this machine if it is left out.

    Raises:
        BadConfiguration: something given cannot be published, and what can; nothing was written.
        OSError
    """
    target = target or Target(sys.platform, machine())
    if target.platform not in PLATFORMS:
        raise BadConfiguration(f"{NAME} does not run on {target.platform!r}; build the bundle on one of {', '.join(PLATFORMS)}.")
    published = repository or EXAMPLE_REPOSITORY
    registry_name = _registry_name(published)
    bundle = dist / f"{NAME}-{VERSION}-{target.platform}-{target.machine}.mcpb"
    manifest = _json(_manifest(target, repository))
    _pack(bundle, manifest, sorted(_files(program)), dated)
    description = _server(registry_name, published, bundle)
    (dist / "server.json").write_bytes(_json(description))
    _write_clients(dist / "clients")
    return (
        f"{bundle} is the bundle that MCP clients install.",
        f"{dist / 'server.json'} is what the MCP registry is told: {registry_name} {VERSION}.",
        *([] if repository else [_about_the_example(dist)]),
        f"{dist / 'clients'} holds what belongs into the configuration of each client.",
    )


def _about_the_example(dist: Path) -> str:
    return (
        f"{dist / 'server.json'} names {EXAMPLE_REPOSITORY}, which is an example and cannot be published; build again with the "
        "URL of the repository that the bundle is released from."
    )


def _registry_name(repository: str) -> str:
    found = _REPOSITORY.fullmatch(repository)
    if found is None:
        raise BadConfiguration(
            f"{repository!r} is no repository that the MCP registry can check the ownership of; give a URL such as "
            f"{EXAMPLE_REPOSITORY}."
        )
    return f"io.github.{found[1]}/{found[2]}"


def _manifest(target: Target, repository: str | None) -> dict[str, object]:
    # A default for each setting, if only an empty one: without it hosts pass "${user_config.…}" on as the value. And
    # no default begins with ${HOME}: hosts do not look into values for more variables.
    return {
        "manifest_version": "0.3",
        "name": NAME,
        "display_name": NAME,
        "version": VERSION,
        "description": DESCRIPTION,
        "author": {"name": "the imaged maintainers"},
        **({"repository": {"type": "git", "url": repository}} if repository else {}),
        "license": "MIT",
        "keywords": ["image generation", "image editing", "openai"],
        "server": {
            "type": "binary",
            "entry_point": f"server/{NAME}",
            "mcp_config": {
                "command": f"${{__dirname}}/server/{NAME}",
                "args": ["mcp"],
                "env": {asked.variable: f"${{user_config.{asked.name}}}" for asked in _ASKED},
            },
        },
        "tools": [
            {"name": name, "description": operation.description}
            for name, operation in OPERATIONS.items()
            if not operation.for_people
        ],
        "prompts_generated": True,
        "compatibility": {"platforms": [target.platform]},
        "user_config": {
            asked.name: {
                "type": asked.kind,
                "title": asked.title,
                "description": asked.description,
                "required": False,
                "default": asked.default,
                **({"sensitive": True} if asked.secret else {}),
            }
            for asked in _ASKED
        },
    }


def _server(registry_name: str, repository: str, bundle: Path) -> dict[str, object]:
    """The registry's entry. It wants the bundle to lie among the releases of the repository, and its digest."""
    home = repository.removesuffix("/").removesuffix(".git")
    with bundle.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "$schema": SERVER_SCHEMA,
        "name": registry_name,
        "title": NAME,
        "description": DESCRIPTION,
        "version": VERSION,
        "repository": {"url": home, "source": "github"},
        "packages": [
            {
                "registryType": "mcpb",
                "identifier": f"{home}/releases/download/v{VERSION}/{bundle.name}",
                "version": VERSION,
                "fileSha256": digest,
                "transport": {"type": "stdio"},
                "environmentVariables": [_variable(asked) for asked in _ASKED],
            }
        ],
    }


def _variable(asked: Asked) -> dict[str, object]:
    return {
        "name": asked.variable,
        "description": asked.description,
        "format": "filepath" if asked.kind == "directory" else "string",
        "isRequired": False,
        "isSecret": asked.secret,
        **({"default": asked.default} if asked.default else {}),
        **({"choices": list(asked.choices)} if asked.choices else {}),
    }


def _write_clients(folder: Path) -> None:
    told = [
        f"Each file holds what belongs into one client's configuration, with {EXAMPLE_PROGRAM} for the path of your program.",
        "`imaged setup CLIENT` does all of it, with the right path and a copy of the client's file.",
        "No key stands in them: it belongs into ~/.config/imaged/.env, as OPENAI_API_KEY=…, where every client finds it.",
        "",
    ]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, client in CLIENTS.items():
        file = folder / f"{name}.{'toml' if client.toml else 'json'}"
        file.write_text(_entry(name) + "\n", "utf-8")
        places = (client.config_path({}, Path("~"), platform) for platform in PLATFORMS)
        told.append(f"{file.name}: {' or, on macOS, '.join(dict.fromkeys(str(place) for place in places))}")
    line = folder / "claude-mcp-add.txt"
    command = shlex.join([EXAMPLE_PROGRAM, "mcp"])
    line.write_text(f"claude mcp add --transport stdio --scope user {NAME} -- {command}\n", "utf-8")
    told.append(f"{line.name}: the same for Claude Code as a command")
    (folder / "README.txt").write_text("\n".join(told) + "\n", "utf-8")


def _entry(client: str) -> str:
    with tempfile.TemporaryDirectory() as nobody:  # a user who has configured nothing
        wish = putting.Wish(client, print_only=True)
        return putting.setup(wish, executable=[EXAMPLE_PROGRAM, "mcp"], environ={}, home=Path(nobody)).entry


def _files(program: Path) -> Iterator[tuple[str, Path]]:
    """Every file of the program with its name in the bundle."""
    executable = program / NAME
    if not executable.is_file() or not os.access(executable, os.X_OK):
        raise BadConfiguration(f"{program} holds no executable {NAME}; give the folder that `pyinstaller build.spec` makes.")
    root = program.resolve()
    yield from _below(program, "server", root, (root,))


def _below(folder: Path, name: str, root: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Links are followed, because not everything that unpacks a bundle makes links; but nowhere out of the program."""
    for path in folder.iterdir():
        try:
            real = Path(os.path.realpath(path, strict=True))
        except OSError as exc:
            raise BadConfiguration(f"{path} leads nowhere ({exc.strerror}); build the program again.") from None
        if not real.is_relative_to(root) or real in above:
            raise BadConfiguration(f"{path} leads to {real}, which cannot be bundled; build the program again.")
        if real.is_dir():
            yield from _below(path, f"{name}/{path.name}", root, (*above, real))
        elif real.is_file():
            yield f"{name}/{path.name}", real
        else:
            raise BadConfiguration(f"{path} is neither a file nor a folder; build the program again.")


def _pack(bundle: Path, manifest: bytes, files: list[tuple[str, Path]], dated: int) -> None:
    """Whole or not at all."""
    bundle.parent.mkdir(parents=True, exist_ok=True)
    unfinished = bundle.with_name(f".{bundle.name}.unfinished")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(_member("manifest.json", 0o644, dated), manifest)
            for name, path in files:
                # Whoever unpacks it decides who may read it; what matters is what can be executed.
                mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                with path.open("rb") as source, packed.open(_member(name, mode, dated), "w") as copy:
                    shutil.copyfileobj(source, copy)
        unfinished.replace(bundle)
    finally:
        unfinished.unlink(missing_ok=True)


def _member(name: str, mode: int, dated: int) -> zipfile.ZipInfo:
    at = time.gmtime(min(max(dated, _ZIP_BEGINS), _ZIP_ENDS))
    member = zipfile.ZipInfo(name, at[:6])
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix: only then the mode is read
    member.external_attr = (stat.S_IFREG | mode) << 16
    return member


def _json(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
