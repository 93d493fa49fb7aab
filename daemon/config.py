"""Every setting, its name in the environment, its default and its limits.

Rule: nobody else reads the environment. A session's settings arrive in the first line of its connection
(the bridge collects them) and belong to that session alone; `Settings.parse` is the border where text
becomes values, with a sentence for each value that cannot be understood.
"""

import base64
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from daemon import bridge, budgets, pace
from daemon.errors import BadConfiguration
from daemon.pace import Pace
from eventlog.values import Account, Backend, Caps, Embedding, MicroUSD
from tools import pricing
from tools.models import catalogue

OPENAI_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = catalogue().default

CONCURRENT_MAX = 64  # more pictures at once than any published rate limit serves
PICTURES_PER_MINUTE = 30  # what an agent draws on purpose in a minute is less; at the dearest it is some five dollars
SAME_PROMPT_PER_HOUR = 10
PACE_MAX = 10_000  # of either; as many as are remembered
SYNC_WAIT_SECONDS_MAX = 3600.0
SETTINGS_BYTES_MAX = 11 * 1024  # in base64, and with the other headers, they stay below the 16 KiB of a request's head
INLINE_BYTES_MAX = 8_000_000  # the TypeScript SDK closes a connection on a message of more than 10 MiB
IDLE_EXIT_SECONDS_MAX = 30 * 86400.0
_DOLLARS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")

HOW_TO_SET_A_KEY = (
    "No OpenAI API key is set for this client: put OPENAI_API_KEY into the env block of the server's entry in your "
    "MCP client's configuration (or into ~/.config/imaged/.env) and restart the client; to try without a key set "
    "IMAGED_BACKEND=offline."
)


class Secret:
    """Text that shows itself to nobody by accident: not in repr, format, tracebacks or pickles."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written down")


class Thumbnails(msgspec.Struct, frozen=True):
    """`size_px` is the longer edge; `quality` is JPEG's, 1-100."""

    wanted: bool = False
    size_px: int = 128
    quality: int = 60


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one session asked for. Times in seconds. `key` is None when there is none or none is needed.

    `max_concurrent` is None where nobody said it: the account keeps the limit it has. `inline_bytes_max` bounds the
    pictures in one answer, in bytes of base64; Claude Desktop refuses a result of 1 MiB.
    """

    account: Account
    key: Secret | None
    model: str
    output_dir: Path
    input_dirs: tuple[Path, ...]
    any_path: bool
    embedding: Embedding
    sidecar: bool
    thumbnails: Thumbnails
    max_concurrent: int | None
    sync_wait_seconds: float
    inline_bytes_max: int
    idle_exit_seconds: float
    caps: Caps = Caps()
    pace: Pace = Pace()
    old_history: tuple[Path, ...] = ()  # where the earlier program's database may be, the likeliest place first

    @property
    def input_roots(self) -> tuple[Path, ...]:
        """Where source pictures may be read from: the folders the user named, and whatever was drawn before."""
        return (*self.input_dirs, *(() if self.output_dir in self.input_dirs else (self.output_dir,)))

    @property
    def can_draw(self) -> bool:
        return self.key is not None or self.account.backend == "offline"

    @classmethod
    def parse(cls, given: Mapping[str, str], *, home_dir: Path) -> "Settings":
        """Settings out of environment names and values; an empty value counts as not set.

        Raises:
            BadConfiguration: names the variable, its value (never the key's) and what is allowed.
        """
        values = {name: value.strip() for name, value in given.items() if value.strip()}
        backend = _backend(values)
        key_text = _header_text(values, "OPENAI_API_KEY") if backend == "openai" else ""
        output_dir = _directory(values, "OPENAI_IMAGE_OUTPUT_DIR", home_dir / "Downloads" / "openai-images", home_dir)
        return cls(
            account=_account(values, backend, key_text),
            key=Secret(key_text) if key_text else None,
            model=values.get("OPENAI_IMAGE_MODEL", DEFAULT_MODEL),
            output_dir=output_dir,
            input_dirs=_directories(values, "OPENAI_IMAGE_INPUT_DIR", home_dir),
            any_path=values.get("OPENAI_IMAGE_ALLOW_ANY_PATH", "").lower() == "true",
            embedding=_embedding(values),
            sidecar=values.get("OPENAI_IMAGE_EMBED_METADATA", "").lower() == "sidecar",
            thumbnails=Thumbnails(
                wanted=values.get("OPENAI_IMAGE_THUMBNAIL", "") == "true",
                size_px=_clamped(values, "OPENAI_IMAGE_THUMBNAIL_SIZE", 128, 1, 512),
                quality=_clamped(values, "OPENAI_IMAGE_THUMBNAIL_QUALITY", 60, 1, 100),
            ),
            max_concurrent=_limit(values),
            sync_wait_seconds=_number(values, "IMAGED_SYNC_WAIT_SECONDS", 45, 0, SYNC_WAIT_SECONDS_MAX),
            inline_bytes_max=int(_number(values, "IMAGED_INLINE_BYTES_MAX", 700_000, 10_000, INLINE_BYTES_MAX, whole=True)),
            idle_exit_seconds=_number(values, "IMAGED_IDLE_EXIT_SECONDS", 900, 0, IDLE_EXIT_SECONDS_MAX),
            caps=_caps(values),
            pace=_pace(values),
            old_history=_old_history(values.get("HISTORY_DB_PATH", ""), output_dir, home_dir),
        )


class Places(msgspec.Struct, frozen=True):
    """Where this user's daemon keeps everything. `home` is absolute."""

    home: Path

    @property
    def events(self) -> Path:
        return self.home / "events"

    @property
    def index(self) -> Path:
        return self.home / "index.sqlite"

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def default_places() -> Places:
    """From IMAGED_HOME or the platform's place. Not from XDG: clients start us with a stripped environment."""
    return Places(Path(bridge.home_directory(environment())))


def environment() -> dict[str, str]:
    """What the command line and the daemon were told, in the environment or in the user's `.env` file."""
    return bridge.with_env_file(os.environ)


def process_environment() -> Mapping[str, str]:
    """The bare environment: for what works without a sound `.env` file, or looks at one."""
    return os.environ


def own_caps() -> Caps:
    """What the user's own `.env` file says. Not our own environment, which a client's bridge may have given us. Blocking.

    Raises:
        BadConfiguration
        Trouble: the file is unsound.
    """
    told = bridge.with_env_file({"HOME": str(user_home())})
    return _caps({name: value.strip() for name, value in told.items() if value.strip()})


def user_home() -> Path:
    """The user's home directory, from HOME or, without it, the password database."""
    return Path.home()


def offline_seconds() -> float:
    """How long the stand-in pretends to draw; IMAGED_OFFLINE_SECONDS of the daemon's own environment."""
    return _number(environment(), "IMAGED_OFFLINE_SECONDS", 0.3, 0, 600)


def fingerprint(key: str) -> str:
    """12 hex digits of the key's SHA-256: enough to tell keys apart, useless for finding one (keys have > 128 bits)."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _account(values: Mapping[str, str], backend: Backend, key: str) -> Account:
    if backend == "offline":
        return Account(backend="offline")
    return Account(
        backend="openai",
        key=fingerprint(key) if key else "",
        base_url=_base_url(values.get("OPENAI_BASE_URL", OPENAI_URL)),
        organization=_header_text(values, "OPENAI_ORGANIZATION"),
        project=_header_text(values, "OPENAI_PROJECT_ID"),
    )


def _backend(values: Mapping[str, str]) -> Backend:
    match values.get("IMAGED_BACKEND", "openai"):
        case "openai":
            return "openai"
        case "offline":
            return "offline"
        case other:
            raise BadConfiguration(f"IMAGED_BACKEND is {other!r}; set it to openai or offline.")


def _header_text(values: Mapping[str, str], name: str) -> str:
    text = values.get(name, "")
    if not (text.isascii() and text.isprintable()):
        raise BadConfiguration(f"{name} holds characters that cannot stand in an HTTP header; copy the id again.")
    return text


def _base_url(text: str) -> str:
    """https anywhere, http only to this machine: the key travels with every request."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port  # a bad port raises only when it is asked for
    except ValueError:
        raise BadConfiguration(f"OPENAI_BASE_URL is {text!r}; give a URL such as {OPENAI_URL}.") from None
    if parts.username or parts.password:
        raise BadConfiguration("OPENAI_BASE_URL must not contain a user name or password; use OPENAI_API_KEY.")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise BadConfiguration(f"OPENAI_BASE_URL is {text!r}; give a URL such as {OPENAI_URL}.")
    if parts.scheme == "http" and not _is_loopback(host):
        raise BadConfiguration(f"OPENAI_BASE_URL is {text!r}; plain http is allowed to this machine only, use https.")
    return text.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _directory(values: Mapping[str, str], name: str, default: Path, home_dir: Path) -> Path:
    text = values.get(name)
    return default if text is None else _one_directory(name, text, home_dir)


def _directories(values: Mapping[str, str], name: str, home_dir: Path) -> tuple[Path, ...]:
    """A list separated as PATH is; empty if it is not set."""
    parts = [part.strip() for part in values.get(name, "").split(os.pathsep)]
    return tuple(_one_directory(name, part, home_dir) for part in parts if part)


def _one_directory(name: str, text: str, home_dir: Path) -> Path:
    if "\0" in text:
        raise BadConfiguration(f"{name} contains a NUL character; write it again.")
    if text == "~" or text.startswith("~/"):
        return home_dir / text[2:]
    path = Path(text)
    if not path.is_absolute():
        raise BadConfiguration(f"{name} is {text!r}; give an absolute path or one that starts with ~/.")
    return path


def _old_history(text: str, output_dir: Path, home_dir: Path) -> tuple[Path, ...]:
    """A value that says nothing to us is passed over: it was meant for another program, and refuses no session."""
    told = home_dir / text[2:] if text.startswith("~/") else Path(text)
    usual = (output_dir / "data" / "openai-gpt-image.db", home_dir / ".openai-gpt-image" / "history.db")
    places = (told, *usual) if told.is_absolute() and "\0" not in text else usual
    return tuple(dict.fromkeys(places))


def _embedding(values: Mapping[str, str]) -> Embedding:
    if values.get("OPENAI_IMAGE_EMBED_METADATA", "").lower() in ("false", "0"):
        return "off"
    match values.get("OPENAI_IMAGE_METADATA_LEVEL"):
        case "minimal":
            return "minimal"
        case "full":
            return "full"
        case _:  # the old server took anything else for standard; its users' files still say so
            return "standard"


def _caps(values: Mapping[str, str]) -> Caps:
    return Caps(
        call=_dollars(values, budgets.CALL),
        day=_dollars(values, budgets.DAY),
        month=_dollars(values, budgets.MONTH),
        confirm=_dollars(values, budgets.CONFIRM),
    )


def _pace(values: Mapping[str, str]) -> Pace:
    return Pace(
        pictures_per_minute=int(_number(values, pace.PER_MINUTE, PICTURES_PER_MINUTE, 0, PACE_MAX, whole=True)),
        same_prompt_per_hour=int(_number(values, pace.SAME_PROMPT, SAME_PROMPT_PER_HOUR, 0, PACE_MAX, whole=True)),
    )


def _dollars(values: Mapping[str, str], name: str) -> MicroUSD | None:
    """None where nothing is said. A cap that cannot be understood must not become none."""
    text = values.get(name)
    if text is None:
        return None
    if not _DOLLARS.fullmatch(text):
        raise BadConfiguration(f"{name} is {text!r}; give US dollars such as 5 or 0.25.")
    return pricing.micro_usd(text)


def _clamped(values: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    try:
        return max(low, min(high, int(values.get(name, default))))
    except ValueError:
        raise BadConfiguration(f"{name} is {values[name]!r}; give a whole number from {low} to {high}.") from None


def _limit(values: Mapping[str, str]) -> int | None:
    limit = _number(values, "IMAGED_MAX_CONCURRENT", 0, 1, CONCURRENT_MAX, whole=True)
    return int(limit) or None


def _number(values: Mapping[str, str], name: str, default: float, low: float, high: float, *, whole: bool = False) -> float:
    text = values.get(name, "")
    if not text:
        return default
    kind = "whole number" if whole else "number"
    try:
        number: float = int(text) if whole else float(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise BadConfiguration(f"{name} is {text!r}; give a {kind} from {low:g} to {high:g}.")
    return number


def settings_header(environ: Mapping[str, str]) -> str:
    """A session's settings as the control API takes them: base64url of JSON. Sentences name settings, never their values.

    Raises:
        BadConfiguration: they are no text, or too long.
    """
    settings = bridge.settings_of(environ)
    for name, value in settings.items():
        try:
            f"{name}{value}".encode()
        except UnicodeEncodeError:
            raise BadConfiguration(f"{name!a} is not text in UTF-8; set it again.") from None
    data = json.dumps(settings, ensure_ascii=False).encode()
    if len(data) > SETTINGS_BYTES_MAX:
        longest = max(settings, key=lambda name: len(settings[name]))
        raise BadConfiguration(
            f"The settings have {len(data):,} bytes, and {SETTINGS_BYTES_MAX:,} are allowed; make {longest!a} shorter."
        )
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
