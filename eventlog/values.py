"""The nouns that facts are made of.

Rule: everything here is plain, frozen and serialisable. Nothing here is a secret, an image or free text;
what a person wrote (prompts, file names, messages) stands in `Words`, outside the hash chain.
"""

import enum
import hashlib
from datetime import datetime
from typing import Literal, NewType

import msgspec

JobId = NewType("JobId", str)
"""A UUIDv7 in its usual 36-character form; also the id of the generation that the job becomes."""

Position = NewType("Position", int)
"""Number of a commit, from 1. Orders everything; clocks only inform. 0 means "before the first"."""

MicroUSD = NewType("MicroUSD", int)
"""Millionths of a US dollar. Money is never a float."""

Sha256 = NewType("Sha256", str)
"""64 lower-case hex digits."""

Tool = Literal["generate_image", "edit_image", "transform_image"]
Door = Literal["mcp", "control", "cli"]
Billed = Literal["no", "unknown", "yes"]
Backend = Literal["openai", "offline"]
CostBasis = Literal["usage", "unknown", "offline", "imported", "resolved"]
Embedding = Literal["off", "minimal", "standard", "full"]


class JobState(enum.Enum):
    """What users see of a job."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def is_over(self) -> bool:
        return self not in (JobState.PENDING, JobState.RUNNING)


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything that may be written to the log. Subclasses repeat `frozen=True` for mypy's sake."""


class Caps(Value, frozen=True):
    """The most that may be spent on one call, in one UTC day and in one UTC month. None: as much as is asked for.

    Above `confirm` a person is asked first.
    """

    call: MicroUSD | None = None
    day: MicroUSD | None = None
    month: MicroUSD | None = None
    confirm: MicroUSD | None = None


class Picture(Value, frozen=True):
    """An image as it was sent or is to be sent, durable in the store under its digest. Pixels; 0 for svg."""

    sha256: Sha256
    size_bytes: int
    width: int
    height: int
    format: str


class ImageRequest(Value, frozen=True):
    """What is asked of the model, defaults filled in; the prompt itself is a word.

    `output_compression` is in percent (0-100) and only for jpeg and webp; None leaves it to the API.
    `sources` are what an edit or transformation starts from, snapshotted when it was asked for; `mask` and
    `markup` belong to the first of them. `input_fidelity` is None where nobody asked for one. `partial_images` is how
    many previews of an unfinished picture are wanted at most; with any, the answer is a stream.
    """

    tool: Tool
    model: str
    count: int = 1
    size: str = "auto"
    quality: str = "auto"
    output_format: str = "png"
    background: str = "auto"
    moderation: str = "auto"
    output_compression: int | None = None
    sources: tuple[Picture, ...] = ()
    mask: Picture | None = None
    markup: Picture | None = None
    input_fidelity: str | None = None
    partial_images: int = 0


class Account(Value, frozen=True):
    """Who pays and where the request goes. Two accounts are one only if every field is equal.

    `key` is a short fingerprint of the API key, never the key; empty for the offline backend.
    """

    backend: Backend
    key: str = ""
    base_url: str = ""
    organization: str = ""
    project: str = ""


class Client(Value, frozen=True):
    """The program that asked, as it introduced itself; bounded and made printable at the border."""

    name: str
    version: str = ""


class Usage(Value, frozen=True):
    """Tokens as the API counted them. None: the API did not say."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_text_tokens: int | None = None
    input_image_tokens: int | None = None
    output_text_tokens: int | None = None
    output_image_tokens: int | None = None


class CostRange(Value, frozen=True):
    """What a request may cost before it is sent. None: no published bound. `table` names the price table."""

    low: MicroUSD | None
    high: MicroUSD | None
    table: str


class Cost(Value, frozen=True):
    """What a reply cost. `amount` is None when it is not known, which is never the same as zero.

    `resolved`: the reply was lost, and the job's owner said what the bill has, or only that it has something; it is
    then the upper estimate. `would_be` is set by the offline backend only: what the same usage costs at OpenAI.
    `claimed` is set for what was imported only: what the earlier program believed it cost.
    """

    amount: MicroUSD | None
    basis: CostBasis
    table: str
    would_be: MicroUSD | None = None
    claimed: MicroUSD | None = None


class Blob(Value, frozen=True):
    """Bytes known to be durable in the content-addressed store."""

    sha256: Sha256
    size_bytes: int


class ArchivedSegment(Value, frozen=True):
    """The part of a segment's file that was moved out of the log; `start` is the log-wide position of its first byte."""

    start: int
    size_bytes: int
    sha256: Sha256


class ImageFile(Value, frozen=True):
    """An image in its final place. `original` is the picture as received; its path is a word of the same commit.

    `derived`: the original carries content credentials, which hold for its own bytes only; this copy has more in it.
    """

    sha256: Sha256
    size_bytes: int
    width: int
    height: int
    format: str
    original: Sha256
    derived: bool = False


class StoredImage(Value, frozen=True):
    """An `ImageFile` together with its path, and that of its sidecar if it has one. None once they are forgotten."""

    path: str | None
    sha256: Sha256
    size_bytes: int
    width: int
    height: int
    format: str
    original: Sha256
    derived: bool = False
    sidecar: str | None = None

    @classmethod
    def of(cls, image: ImageFile, path: str | None, sidecar: str | None) -> "StoredImage":
        return cls(
            path=path,
            sha256=image.sha256,
            size_bytes=image.size_bytes,
            width=image.width,
            height=image.height,
            format=image.format,
            original=image.original,
            derived=image.derived,
            sidecar=sidecar,
        )


class Rendered(Value, frozen=True):
    """The parameters the API says it used, never the requested `auto`. Empty: the API did not say."""

    size: str = ""
    quality: str = ""
    background: str = ""
    output_format: str = ""


class Words(Value, frozen=True, omit_defaults=True):
    """Text that a person may demand to be removed. Stands beside its commit, tied to it by a salted digest.

    `salt` is 32 hex digits of randomness, so that the digest that stays behind cannot be guessed against.
    `arguments` are those of the operation as asked, without what has a field of its own here.
    `paths` and `sidecars` are absolute and in the order of the images of the same commit; `sources` names the
    pictures an edit starts from, as their asker did.
    """

    salt: str
    prompt: str | None = None
    output_path: str | None = None
    output_dir: str | None = None
    paths: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    message: str | None = None
    arguments: dict[str, msgspec.Raw] = {}


def digest(data: bytes) -> Sha256:
    return Sha256(hashlib.sha256(data).hexdigest())


def make_job_id(at: datetime, random: bytes) -> JobId:
    """UUIDv7 (RFC 9562 §5.7) from a UTC time and 10 random bytes, so that ids sort by the time of asking."""
    milliseconds = int(at.timestamp() * 1000)
    raw = bytearray(milliseconds.to_bytes(6, "big") + random[:10])
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    text = raw.hex()
    return JobId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
