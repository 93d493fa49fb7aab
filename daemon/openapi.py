"""The control API as an OpenAPI 3.1 document, made from the table of operations.

Rule: whoever gives the same version of the program gets the same bytes; nothing here depends on settings or state.
"""

from functools import cache
from typing import Any

import msgspec

from daemon.daemon_state import Status
from daemon.operations import OPERATIONS, Operation
from daemon.replies import JSON, PROBLEM
from daemon.version import VERSION

_REF = "#/components/schemas/{name}"
_ABOUT = (
    "HTTP over the Unix socket run/control.sock in the daemon's home; only its own user is answered. Fields may be added to "
    "answers within /v1, so readers pass over what they do not know; in requests an unknown field is refused. A drawing "
    "operation is not repeated by asking for its state; repeating the POST itself draws, and costs, once more, unless it "
    "carries an idempotency_key that was used before."
)
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "argument"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One sentence: what, on which value, what is allowed, what to do next."},
        "code": {"type": "string", "description": "Stable, and the same as at the other doors."},
        "argument": {"type": "string", "description": "The argument at fault; empty if none is."},
        "billed": {"enum": ["no", "unknown"], "description": "Only of what may cost money."},
    },
}
_SETTINGS = {
    "name": "X-Imaged-Settings",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+={0,2}$"},
    "description": (
        "base64url of a JSON object of settings and their values, as in the environment of an MCP client: OPENAI_API_KEY, "
        "OPENAI_IMAGE_OUTPUT_DIR and so on. Without it the daemon's own are taken."
    ),
}
_ATTACHMENT = {
    "type": "object",
    "required": ["mime_type", "data", "note"],
    "properties": {
        "mime_type": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "note": {"type": "string", "description": "What is not as asked; empty if it is."},
    },
}


@cache
def document() -> dict[str, Any]:
    kinds = [kind for operation in OPERATIONS.values() for kind in (operation.arguments, operation.result)]
    _, schemas = msgspec.json.schema_components([*dict.fromkeys([*kinds, Status])], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "imaged", "version": VERSION, "description": _ABOUT},
        "servers": [{"url": "http://imaged"}],
        "paths": {**{f"/v1/{name}": {"post": _operation(row)} for name, row in OPERATIONS.items()}, **_paths()},
        "components": {
            "schemas": {**schemas, "Problem": _PROBLEM, "Attachment": _ATTACHMENT},
            "responses": {
                "Problem": {
                    "description": "Refused, or failed",
                    "content": {PROBLEM: {"schema": _reference("Problem")}},
                }
            },
        },
    }


def _operation(row: Operation) -> dict[str, Any]:
    answer = {
        "type": "object",
        "required": ["result", "text", "failed"],
        "properties": {
            "result": _reference(row.result.__name__),
            "text": {"type": "string", "description": "The same for people."},
            "failed": {"type": "boolean", "description": "The result tells of a job that came to nothing."},
            "attachments": {"type": "array", "items": _reference("Attachment")},
        },
    }
    return {
        "operationId": row.name,
        "summary": row.title,
        "description": row.description,
        "parameters": [_SETTINGS],
        "requestBody": {"required": True, "content": {JSON: {"schema": _reference(row.arguments.__name__)}}},
        "responses": _responses("What was asked for", JSON, answer),
    }


def _paths() -> dict[str, Any]:
    status = {
        "type": "object",
        "required": ["api", "api_oldest", "draining", "daemon"],
        "properties": {
            "api": {"type": "string"},
            "api_oldest": {"type": "string"},
            "draining": {"type": "boolean", "description": "The daemon is ending and takes no new operations."},
            "daemon": _reference("Status"),
        },
    }
    return {
        "/v1/status": {"get": _get("show_status", "The daemon and its API", _responses("Its status", JSON, status))},
        "/v1/operations": {"get": _get("list_operations", "All operations", _responses("The table", JSON, {"type": "object"}))},
        "/v1/openapi.json": {"get": _get("show_document", "This document", _responses("The document", JSON, {"type": "object"}))},
        "/v1/images/{uuid}/{n}": {"get": _image()},
        "/v1/events": {"get": _events()},
    }


def _image() -> dict[str, Any]:
    uuid = {"type": "string", "pattern": "^[0-9A-Za-z-]{1,64}$"}
    parameters = [
        {"name": "uuid", "in": "path", "required": True, "schema": uuid},
        {"name": "n", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1, "maximum": 9999}},
    ]
    whole: dict[str, Any] = {"image/*": {}}
    responses = {
        "200": {"description": "The picture exactly as the API sent it; its ETag is its SHA-256", "content": whole},
        "206": {"description": "The range that was asked for", "content": whole},
        "304": {"description": "It is what If-None-Match names"},
        "default": {"$ref": "#/components/responses/Problem"},
    }
    return _get("read_image", "A picture as it was received", responses, parameters)


def _events() -> dict[str, Any]:
    parameters = [
        {
            "name": "after",
            "in": "query",
            "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1, "default": 0},
            "description": "Only commits behind this position. For server-sent events, Last-Event-ID goes before it.",
        },
        {
            "name": "follow",
            "in": "query",
            "schema": {"enum": ["0", "1"], "default": "0"},
            "description": "1: does not end at the end of the log, but waits for more, with a sign of life every 15 s.",
        },
    ]
    content: dict[str, Any] = {"application/x-ndjson": {}, "text/event-stream": {}}
    responses = {
        "200": {"description": "One commit a line, or an event", "content": content},
        "default": {"$ref": "#/components/responses/Problem"},
    }
    return _get("read_events", "The event log", responses, parameters)


def _get(name: str, title: str, responses: dict[str, Any], parameters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"operationId": name, "summary": title, "parameters": parameters or [], "responses": responses}


def _responses(description: str, media_type: str, shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "200": {"description": description, "content": {media_type: {"schema": shape}}},
        "default": {"$ref": "#/components/responses/Problem"},
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}
