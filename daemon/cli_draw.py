"""`imaged generate`, `edit` and `transform`: ordering pictures, and waiting for them.

Rule: stdout is the path of each picture, or with --no-wait the job's id; cost, warnings and the bar stand on stderr. An
order carries a key of its own, so a daemon that goes away in the middle is asked again and draws once. Whoever leaves
is told how to come back: the job goes on. Nothing is checked here that the daemon checks.
"""

import argparse
import base64
import os
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from daemon import arguments
from daemon.cli_options import EXAMPLE_ID, Parser, add_command, add_json, completed_by, given, offering, seconds
from daemon.errors import Refused
from tools.models import catalogue

if TYPE_CHECKING:
    from daemon.cli_options import Commands

STDIN = "-"
KEY_BYTES = 16
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(/[0-9]+)?")
_ARGUMENTS = get_type_hints(arguments.StartGenerationJob, include_extras=True)
_DEFAULT_NAMES = {
    kind: str(shape(prompt="").output_path)
    for kind, shape in (
        ("generate_image", arguments.GenerateImage),
        ("edit_image", arguments.EditImage),
        ("transform_image", arguments.TransformImage),
    )
}

NAMES = {  # of options, and of the operation's arguments that they are
    "count": "sample_count",
    "size": "size",
    "quality": "quality",
    "format": "output_format",
    "background": "background",
    "transparent": "transparent_background",
    "compression": "output_compression",
    "model": "model",
    "moderation": "moderation",
    "fidelity": "input_fidelity",
    "partial_images": "partial_images",
    "idempotency_key": "idempotency_key",
    "dry_run": "dry_run",
}
OPTIONS = {  # how a refusal names an argument for whoever typed the option
    **{ours: f"--{name.replace('_', '-')}" for name, ours in NAMES.items()},
    "output_path": "--output",
    "mask_image_path": "--mask",
    "mask_image_base64": "--mask",
    "markup_image_path": "--markup",
    "markup_image_base64": "--markup",
    "prompt": "PROMPT",
    "reference_images": "SOURCE",
    "reference_image_path": "SOURCE",
}


def generate(asked: argparse.Namespace) -> int:
    """Draw pictures from a prompt."""
    return _draw("generate_image", asked)


def edit(asked: argparse.Namespace) -> int:
    """Change pictures as a prompt says, within a mask if given."""
    return _draw("edit_image", asked)


def transform(asked: argparse.Namespace) -> int:
    """Draw a picture anew in another style or form."""
    return _draw("transform_image", asked)


def add(commands: "Commands") -> None:
    generating = add_command(
        commands,
        "generate PROMPT",
        generate,
        '''generate "a fox in the snow"''',
        """generate "a fox in the snow" -n 4 --size 1536x1024 --quality low""",
        """generate @prompt.txt -o ~/Pictures/fox.webp""",
        '''generate "a logo, flat" --transparent --json | jq -r ".images[].path"''',
        "generate - --no-wait < prompt.txt",
    )
    editing = add_command(
        commands,
        "edit PROMPT SOURCE …",
        edit,
        """edit "add snow" house.jpg""",
        """edit "put the cat on the sofa" cat.png sofa.png -o together.png""",
        """edit "a blue door" house.png --mask door.png""",
        f"""edit "make it night" {EXAMPLE_ID}/2""",
        """edit "remove the text" - < poster.png""",
    )
    transforming = add_command(
        commands,
        "transform PROMPT SOURCE …",
        transform,
        """transform "as a woodcut" photo.jpg""",
        """transform @style.txt photo.jpg -o woodcut.png --quality high""",
    )
    for parser in (generating, editing, transforming):
        parser.add_argument("prompt", metavar="PROMPT", help="what to draw; - reads stdin, @FILE reads a file")
    for parser in (editing, transforming):
        _add_sources(parser)
    _add_overlays(editing)
    for parser in (generating, editing, transforming):
        _add_looks(parser)
        _add_manners(parser)


def _add_sources(parser: Parser) -> None:
    what = "a picture to start from: a file, - for stdin, or the UUID of a generation (UUID/2: its second picture)"
    parser.add_argument("sources", metavar="SOURCE", nargs="*", help=what)
    parser.add_argument("-i", "--input", metavar="SOURCE", action="append", default=[], help="the same, as an option")
    parser.rest = "sources"
    _choice(parser, "fidelity", "input_fidelity", "how closely to keep to the sources; gpt-image-1.5 only")


def _add_overlays(parser: Parser) -> None:
    parser.add_argument("--mask", metavar="FILE", help="a png whose transparent parts say where to edit; - for stdin")
    parser.add_argument("--markup", metavar="FILE", help="a transparent png with the changes drawn on it; - for stdin")


def _add_looks(parser: Parser) -> None:
    parser.add_argument("-n", "--count", type=int, metavar="N", help="how many pictures (1)")
    what = "file name or folder; left out: a name in the output directory. Never overwrites"
    parser.add_argument("-o", "--output", metavar="PATH", help=what)
    sizes = parser.add_argument("--size", metavar="WxH", help="such as 1024x1024 or 1536x1024 (auto)")
    completed_by(sizes, offering(["auto", *catalogue().limits.popular_sizes]))
    _choice(parser, "quality", "quality", "costs more the higher it is")
    _choice(parser, "format", "output_format", "left out: as the name after -o ends, or png")
    _choice(parser, "background", "background", "")
    parser.add_argument("--transparent", action="store_true", help="the same as --background transparent")
    parser.add_argument("--compression", type=int, metavar="PERCENT", help="of quality kept, for jpeg and webp (100)")
    previews = "how many previews to ask for while it is drawn, at most; each adds to the cost (0)"
    parser.add_argument("--partial-images", type=int, metavar="N", help=previews)
    models = parser.add_argument(
        "--model", metavar="NAME", help="see `imaged models`; left out: OPENAI_IMAGE_MODEL or the default"
    )
    completed_by(models, offering(model.name for model in catalogue().models))
    _choice(parser, "moderation", "moderation", "how strictly OpenAI filters")


def _choice(parser: Parser, option: str, argument: str, meaning: str) -> None:
    """Its values are offered and shown; the daemon says which are allowed."""
    values = _words(_ARGUMENTS[argument])
    told = "; ".join([", ".join(values), *([meaning] if meaning else [])])
    completed_by(parser.add_argument(f"--{option}", metavar="WORD", help=told), offering(values))


def _words(annotation: object) -> tuple[str, ...]:
    """Those of the `Literal` that stands somewhere in it."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return parts
    return next((found for part in parts if (found := _words(part))), ())


def _add_manners(parser: Parser) -> None:
    key = "a word of your own: ordered again with it, the same picture is not drawn twice"
    parser.add_argument("--idempotency-key", metavar="KEY", help=key)
    parser.add_argument("--dry-run", action="store_true", help="draw nothing: check everything and say what it would cost")
    add_patience(parser)
    add_json(parser)


def add_patience(parser: argparse.ArgumentParser) -> None:
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument("--wait", type=seconds, metavar="SECONDS", help="how long; then exit with 124 (until it is done)")
    waiting.add_argument("--no-wait", action="store_true", help="order it, print the job's id and leave")
    parser.add_argument("--no-inline", dest="inline", action="store_false", help="never show the picture in the terminal")


def _draw(tool: str, asked: argparse.Namespace) -> int:
    from daemon import cli_waiting
    from daemon.cli_connection import Named, connected

    order = _order(tool, asked)
    output_path = str(order["output_path"]) if "output_path" in order else None
    with connected(named=Named(output_path, _files(asked))) as connection:
        return cli_waiting.order(connection, "start_generation_job", order, OPTIONS, cli_waiting.manners(asked))


def _order(tool: str, asked: argparse.Namespace) -> dict[str, object]:
    """The arguments of `start_generation_job`. Before the daemon is started, because that leaves the working directory.

    Raises:
        Refused: something that is read here cannot be.
    """
    stdin = _Stdin()
    order = {"tool_name": tool, "prompt": _prompt(asked.prompt, stdin), "idempotency_key": secrets.token_hex(KEY_BYTES)}
    found = {**order, **given(asked, {name: ours for name, ours in NAMES.items() if hasattr(asked, name)})}
    if asked.output is not None:
        found["output_path"] = output(asked.output, tool)
        ending = Path(asked.output).suffix.lower().removeprefix(".").replace("jpg", "jpeg")
        if asked.format is None and ending in _words(_ARGUMENTS["output_format"]):
            found["output_format"] = ending
    if tool != "generate_image":
        found["reference_images"] = [_source(text, stdin) for text in (*asked.input, *asked.sources)]
    for name in ("mask", "markup"):
        text = getattr(asked, name, None)
        if text is not None:
            kind = "base64" if text == STDIN else "path"
            found[f"{name}_image_{kind}"] = stdin.picture(f"--{name}") if text == STDIN else _absolute(text)
    return found


def _files(asked: argparse.Namespace) -> list[str]:
    """Those of the sources that are files, absolute."""
    texts = [*getattr(asked, "input", ()), *getattr(asked, "sources", ()), *(getattr(asked, n, None) for n in ("mask", "markup"))]
    return [_absolute(text) for text in texts if text and text != STDIN and not _UUID.fullmatch(text) and text[:5] != "data:"]


class _Stdin:
    """Can be read once."""

    def __init__(self) -> None:
        self._taken_by = ""

    def picture(self, what: str) -> str:
        data = self._bytes(what, catalogue().limits.edit_input_bytes_max)
        if not data:
            raise _no(f"{what} is -, but stdin is empty; pipe a picture into it", what)
        return base64.b64encode(data).decode()

    def text(self, what: str) -> str:
        return _decoded(self._bytes(what, _text_bytes_max()), "stdin", what)

    def _bytes(self, what: str, most: int) -> bytes:
        """One more than may be, so that whoever checks sees that it is too much."""
        if self._taken_by:
            raise _no(f"{what} and {self._taken_by} are both -, but stdin can be read once; give one of them as a file", what)
        self._taken_by = what
        return sys.stdin.buffer.read(most + 1)


def _prompt(text: str, stdin: _Stdin) -> str:
    if text == STDIN:
        found = stdin.text("PROMPT").strip()
    elif text.startswith("@"):
        found = _file_text(Path(text[1:])).strip()
    else:
        found = text
    if not found.strip():
        raise _no('the prompt is empty; say what to draw, such as: imaged generate "a fox in the snow"', "prompt")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise _no("the prompt is not text in UTF-8; write it again", "prompt") from None
    return found


def _file_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_text_bytes_max() + 1)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise _no(
            f"the prompt @{path} cannot be read: {why}; a prompt that begins with @ can come through stdin", "prompt"
        ) from exc
    return _decoded(data, str(path), "prompt")


def _decoded(data: bytes, where: str, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise _no(f"{where} is not text in UTF-8 (byte {exc.start:,}); save it again as such", what) from exc


def _text_bytes_max() -> int:
    """Four bytes for each character that a prompt may have, and room for the white space around it."""
    return 8 * catalogue().limits.prompt_characters_max


def _source(text: str, stdin: _Stdin) -> str:
    """As `reference_images` takes it. A file that is named like a UUID can be given as ./UUID."""
    if text == STDIN:
        return stdin.picture("SOURCE")
    if _UUID.fullmatch(text) or text.startswith("data:"):
        return text
    return _absolute(text)


def _absolute(text: str) -> str:
    """Below the working directory if it is relative. Links are the daemon's matter, but `..` is what the kernel makes of
    it: behind a link it is the parent of where the link leads, which the letters of the path do not tell.
    """
    path = Path.cwd() / text
    if ".." not in path.parts:
        return str(path)
    if path.name == "..":
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118  # a name may be anything


def output(text: str, tool: str = "generate_image") -> str:
    """Absolute. In a folder the picture has its usual name."""
    if text == STDIN:
        raise _no("--output is -, but pictures are files, and their paths stand on stdout; give a file name", "output_path")
    path = Path(_absolute(text))
    return str(path / _DEFAULT_NAMES[tool]) if text.endswith("/") or path.is_dir() else str(path)


def _no(sentence: str, argument: str) -> Refused:
    return Refused(f"{sentence}.", code="bad_arguments", argument=argument)
