"""The MCP skin over the operations: one session per socket connection, both protocol eras. The only file that knows mcp.

Rule: this file translates. What a tool does stands in `operations`, what can be read in `resources`, what can be
said in `prompts`; which era a client speaks is decided by its first request that is not a `server/discover` probe,
because real clients probe and then fall back.
"""

import base64
import dataclasses
import hmac
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import anyio
import msgspec
import trio
from anyio.streams.memory import MemoryObjectSendStream
from mcp.server.caching import CacheHint
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.runner import modern_error_data, serve_dual_era_loop, serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.inbound import InboundLadderRejection, classify_inbound_request
from mcp.shared.message import MessageMetadata, ServerMessageMetadata, SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    Annotations,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ContentBlock,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    GetPromptRequestParams,
    GetPromptResult,
    GetTaskRequestParams,
    ImageContent,
    InputRequiredResult,
    JSONRPCError,
    JSONRPCRequest,
    JSONRPCResponse,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    ReadResourceRequestParams,
    ReadResourceResult,
    RequestId,
    Resource,
    ResourceLink,
    ResourceTemplate,
    ResourceTemplateReference,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
    jsonrpc_message_adapter,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from daemon import arguments, decisions, operations, prompts, resources, tasks, texts
from daemon.errors import Refused
from daemon.house import House
from daemon.lines import LineReader, Reject
from daemon.operations import OPERATIONS, Operation, Refusal
from daemon.request_words import words_of
from daemon.results import Answer, JobReport
from daemon.session import AskPerson, Caller, PersonAsked, Session, client_named
from daemon.version import VERSION
from eventlog.errors import EventLogError, IndexUnavailable
from eventlog.events import RequestReceived
from tools.errors import FileFailed

LINE_BYTES_MAX = 64 * 1024 * 1024  # one inline source image of 48 MB in base64
REQUESTS_OPEN_MAX = 64  # per connection; a client that never reads its answers stops here
READ_BYTES = 64 * 1024
WRITE_SECONDS_MAX = 300.0  # a client that takes nothing for this long is gone
LAST_ANSWERS_SECONDS_MAX = 1.5  # after the client closed its side; clients wait 2 s before they kill
TOO_MANY_REQUESTS = 1429  # outside the range that JSON-RPC and MCP keep for themselves
RESOURCE_NOT_FOUND = -32002  # until 2025-11-25; later versions say INVALID_PARAMS
RESOURCE_LINKS_FROM = "2025-06-18"  # older clients do not know this kind of content and may refuse the whole answer
PERSON_SECONDS_MAX = 300.0  # to answer a question; then the call is refused, and says how to approve at a terminal
APPROVAL = "approval"
YES_OR_NO = {
    "type": "object",
    "properties": {"draw": {"type": "boolean", "title": "Draw it", "description": "Yes: it is drawn and paid for."}},
    "required": ["draw"],
}
UNCHANGING_MS = 3_600_000  # for what is the same until another version is installed

INSTRUCTIONS = (
    "Draws pictures with OpenAI's image API and keeps an exact record of each. Drawing costs the user money; history and "
    "job tools are free. A drawing call that takes long answers with a job id: ask wait_for_job then instead of drawing "
    "again. Answers name the absolute path of every file; show it to the user."
)

logger = logging.getLogger(__name__)

_Outgoing = SessionMessage | bytes


async def serve(
    stream: trio.SocketStream, received: bytes, session: Session, house: House, server: "Server[House] | None" = None
) -> None:
    """One client, until it leaves or the door closes. `received` is what came behind the first line. Jobs it started go on.

    Another `server` than ours is for tests of what carries it.
    """
    server = server or _server()
    connection = _Wire(stream, session, server)
    to_server, from_client = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_client, outgoing = anyio.create_memory_object_stream[_Outgoing](0)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.write, outgoing, nursery.cancel_scope)
            nursery.start_soon(connection.read, received, to_server, to_client.clone(), house)
            await serve_dual_era_loop(server, from_client, to_client, lifespan_state=house)
    except* (anyio.BrokenResourceError, anyio.ClosedResourceError, trio.BrokenResourceError, trio.ClosedResourceError):
        logger.info("a client left in the middle of something")


class _Wire:
    """Lines on a socket, and which requests are open on it."""

    def __init__(self, stream: trio.SocketStream, session: Session, server: "Server[House]") -> None:
        self._stream = stream
        self._session = session
        self._server = server
        self._open: set[str] = set()  # the SDK takes 7 and "7" for one
        self._idle = trio.Event()
        self._era_is_decided = False

    async def read(
        self,
        received: bytes,
        to_server: MemoryObjectSendStream[SessionMessage | Exception],
        to_client: MemoryObjectSendStream[_Outgoing],
        house: House,
    ) -> None:
        lines = LineReader(LINE_BYTES_MAX)
        async with to_server, to_client:
            data = received or await self._receive(house)
            while data:
                for line in lines.feed(data):
                    await self._take(line, to_server, to_client, house)
                data = await self._receive(house)
            if not house.closing.begun:  # otherwise the next daemon is told the whole of it
                for line in lines.finish():
                    await self._take(line, to_server, to_client, house)
            # When it is our door that closes, whoever waits for a picture may do so for as long as it is drawn.
            with trio.move_on_after(math.inf if house.closing.begun else LAST_ANSWERS_SECONDS_MAX):
                while self._open:
                    await self._idle.wait()

    async def _receive(self, house: House) -> bytes:
        """Empty: there is nothing more. When the door closes, what was sent before is still taken, and later words fail."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with house.closing.ends_a_wait() as wait:
                return bytes(await self._stream.receive_some(READ_BYTES))
            if wait.cancelled_caught:
                self._stream.socket.shutdown(trio.socket.SHUT_RD)
                return bytes(await self._stream.receive_some(READ_BYTES))
        return b""

    async def _take(
        self,
        line: bytes | Reject,
        to_server: MemoryObjectSendStream[SessionMessage | Exception],
        to_client: MemoryObjectSendStream[_Outgoing],
        house: House,
    ) -> None:
        if isinstance(line, Reject):
            await to_client.send(line.reply)
            return
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValidationError:
            # The line reader lets only requests, notifications and answers through; what pydantic still
            # refuses is a detail such as a fractional id.
            await to_client.send(_error(None, INVALID_REQUEST, "This is JSON, but not a JSON-RPC message."))
            return
        if not isinstance(message, JSONRPCRequest):
            await to_server.send(SessionMessage(message, metadata=ServerMessageMetadata(request_context=self._session)))
            return
        if str(message.id) in self._open:
            await to_client.send(_error(message.id, INVALID_REQUEST, f"A request with id {message.id!r} is still open."))
            return
        if len(self._open) >= REQUESTS_OPEN_MAX:
            await to_client.send(
                _error(message.id, TOO_MANY_REQUESTS, f"{REQUESTS_OPEN_MAX} requests are open; wait for some answers.")
            )
            return
        if message.method == "server/discover" and not self._era_is_decided:
            await to_client.send(await _discover(message, self._server, house))
            return
        self._era_is_decided = True
        self._open.add(str(message.id))

        async def unanswered() -> None:
            self._close(message.id)

        metadata = ServerMessageMetadata(request_context=self._session, on_request_unanswered=unanswered)
        await to_server.send(SessionMessage(message, metadata=metadata))

    async def write(self, outgoing: Any, everything: trio.CancelScope) -> None:
        try:
            async for item in outgoing:
                if isinstance(item, SessionMessage):
                    message = item.message
                    data = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
                    if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
                        self._close(message.id)
                else:
                    data = item
                with trio.fail_after(WRITE_SECONDS_MAX):
                    await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            everything.cancel()  # the client takes nothing more; there is nobody to answer

    def _close(self, request_id: RequestId) -> None:
        self._open.discard(str(request_id))
        self._idle.set()
        self._idle = trio.Event()


def _error(request_id: RequestId | None, code: int, message: str) -> bytes:
    error = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
    return msgspec.json.encode(error) + b"\n"


class _ProbeContext:
    """The dispatch context of a probe: it is answered and leaves nothing behind."""

    transport = TransportContext(kind="unix-socket", can_send_request=False)
    can_send_request = False

    def __init__(self, request_id: RequestId) -> None:
        self.request_id: RequestId | None = request_id
        self.message_metadata: MessageMetadata = None
        self.cancel_requested = anyio.Event()

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Nobody is told anything during a probe."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """A probe has no progress."""


async def _discover(request: JSONRPCRequest, server: "Server[House]", house: House) -> SessionMessage:
    """Answer a probe without deciding the connection's era: the SDK would refuse a later `initialize`."""
    try:
        route = classify_inbound_request({"method": request.method, "params": request.params})
        if isinstance(route, InboundLadderRejection):
            raise MCPError(code=route.code, message=route.message, data=route.data)
        result = await serve_one(
            server,
            _ProbeContext(request.id),
            request.method,
            request.params,
            connection=Connection.from_envelope(route.protocol_version, route.client_info, route.client_capabilities),
            lifespan_state=house,
        )
    except (MCPError, ValidationError) as exc:
        return SessionMessage(JSONRPCError(jsonrpc="2.0", id=request.id, error=modern_error_data(exc)))
    return SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=request.id, result=result))


@cache
def _server() -> "Server[House]":
    server: Server[House] = Server(
        "imaged",
        version=VERSION,
        title="imaged",
        instructions=INSTRUCTIONS,
        # Not for resources/list and resources/read: new pictures come, and old ones may be forgotten.
        cache_hints={
            "tools/list": CacheHint(ttl_ms=UNCHANGING_MS, scope="public"),
            "prompts/list": CacheHint(ttl_ms=UNCHANGING_MS, scope="public"),
            "resources/templates/list": CacheHint(ttl_ms=UNCHANGING_MS, scope="public"),
        },
        on_list_tools=_list_tools,
        on_list_resources=_list_resources,
        on_list_resource_templates=_list_resource_templates,
        on_read_resource=_read_resource,
        on_list_prompts=_list_prompts,
        on_get_prompt=_get_prompt,
        on_completion=_complete,
    )
    server.add_request_handler("tools/call", CallToolRequestParams, _call_tool)  # its results are more than the core knows
    server.extensions[tasks.EXTENSION] = {}
    for method, task_handler in (("tasks/get", _get_task), ("tasks/update", _update_task), ("tasks/cancel", _cancel_task)):
        server.add_request_handler(method, GetTaskRequestParams, task_handler)
    server.middleware.clear()  # OpenTelemetry spans that nobody collects
    return server


@cache
def tools() -> tuple[Tool, ...]:
    """The same for every client, connection and day."""
    return tuple(_tool(operation) for operation in OPERATIONS.values() if not operation.for_people)


def _tool(operation: Operation) -> Tool:
    return Tool(
        name=operation.name,
        title=operation.title,
        description=operation.description,
        input_schema=arguments.schema(operation.arguments),
        output_schema=arguments.schema_of_answer(operation.result, operations.Refusal),
        annotations=ToolAnnotations(
            title=operation.title,
            read_only_hint=operation.read_only,
            destructive_hint=operation.destructive,
            idempotent_hint=operation.idempotent,
            open_world_hint=operation.draw is not None,
        ),
    )


async def _list_tools(ctx: "ServerRequestContext[House]", params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(tools=list(tools()))


async def _call_tool(
    ctx: "ServerRequestContext[House]", params: CallToolRequestParams
) -> CallToolResult | InputRequiredResult | dict[str, Any]:
    operation = OPERATIONS.get(params.name)
    if operation is None or operation.for_people:
        known = ", ".join(tool.name for tool in tools())
        raise MCPError(code=INVALID_PARAMS, message=f"There is no tool {params.name[:64]!r}; there are {known}.")
    with _refusals_as_errors(ctx):
        caller = dataclasses.replace(_caller(ctx), ask_person=_person(ctx, params))
        as_task = operation.draw is not None and not operation.answers_at_once and _knows_tasks(ctx)
        if as_task:
            caller = _without_waiting(caller)
        try:
            answer = await operations.answer(ctx.lifespan_context, caller, params.name, params.arguments or {})
        except PersonAsked as asked:
            form = ElicitRequestFormParams(message=asked.question, requested_schema=YES_OR_NO)
            return InputRequiredResult(input_requests={APPROVAL: ElicitRequest(params=form)}, request_state=asked.code)
        if isinstance(answer, Refusal):
            return _refused(answer)
        if as_task and isinstance(answer.result, JobReport) and not tasks.is_over(answer.result):
            task = tasks.task_of(answer.result.job_id, params.arguments or {}, caller.session.settings)
            return {"resultType": "task", **tasks.told(task, answer.result, {})}
        return _answered(answer, await _links(ctx, answer))


async def _links(ctx: "ServerRequestContext[House]", answer: Answer) -> tuple[resources.Listed, ...]:
    if isinstance(answer.result, JobReport) and ctx.protocol_version >= RESOURCE_LINKS_FROM:
        return await resources.links(ctx.lifespan_context, answer.result)
    return ()


def _knows_tasks(ctx: "ServerRequestContext[House]") -> bool:
    """The client says so with each request; the extension belongs to the modern era only."""
    capabilities = ctx.session.client_capabilities
    offered = (capabilities.extensions if capabilities else None) or {}
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and tasks.EXTENSION in offered


def _without_waiting(caller: Caller) -> Caller:
    settings = msgspec.structs.replace(caller.session.settings, sync_wait_seconds=0.0)
    return dataclasses.replace(caller, session=dataclasses.replace(caller.session, settings=settings))


async def _get_task(ctx: "ServerRequestContext[House]", params: GetTaskRequestParams) -> dict[str, Any]:
    _insist_on_tasks(ctx)
    with _refusals_as_errors(ctx):
        task = tasks.parse(params.task_id)
        wanted = {"return_base64": task.picture, "include_thumbnail": task.thumbnail}
        answer = await _ask_of_task(ctx, "wait_for_job", {"job_id": task.job_id, "wait_seconds": 0, **wanted})
        assert isinstance(answer.result, JobReport)
        result = _answered(answer, await _links(ctx, answer)).model_dump(by_alias=True, mode="json", exclude_none=True)
        return {"resultType": "complete", **tasks.told(task, answer.result, result)}


async def _update_task(ctx: "ServerRequestContext[House]", params: GetTaskRequestParams) -> dict[str, Any]:
    """No task of ours ever waits for an answer of its client."""
    _insist_on_tasks(ctx)
    with _refusals_as_errors(ctx):
        await _ask_of_task(ctx, "check_job_status", {"job_id": tasks.parse(params.task_id).job_id})
    return {"resultType": "complete"}


async def _cancel_task(ctx: "ServerRequestContext[House]", params: GetTaskRequestParams) -> dict[str, Any]:
    """What is over already stays as it is, and that is no error."""
    _insist_on_tasks(ctx)
    with _refusals_as_errors(ctx):
        try:
            await _ask_of_task(ctx, "cancel_job", {"job_id": tasks.parse(params.task_id).job_id})
        except Refused as refused:
            if refused.code != "already_over":
                raise
    return {"resultType": "complete"}


async def _ask_of_task(ctx: "ServerRequestContext[House]", operation: str, given: Mapping[str, Any]) -> Answer:
    answer = await operations.answer(ctx.lifespan_context, _caller(ctx), operation, given)
    if isinstance(answer, Refusal):
        raise Refused(answer.message, code=answer.code)
    return answer


def _insist_on_tasks(ctx: "ServerRequestContext[House]") -> None:
    if not _knows_tasks(ctx):
        needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {tasks.EXTENSION: {}}}}
        raise MCPError(
            code=MISSING_REQUIRED_CLIENT_CAPABILITY, message=f"The client has not declared {tasks.EXTENSION}.", data=needed
        )


def _person(ctx: "ServerRequestContext[House]", params: CallToolRequestParams) -> AskPerson | None:
    """The way to the person in front of this client, None if it has none. Each era has its own."""
    capabilities = ctx.session.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    if elicitation is None or (elicitation.form is None and elicitation.url is not None):
        return None

    async def ask_now(question: str, code: str) -> bool | None:
        with trio.move_on_after(PERSON_SECONDS_MAX):
            try:
                return _is_yes(await ctx.session.elicit_form(question, YES_OR_NO, ctx.request_id))
            except (MCPError, ValidationError) as exc:
                logger.info("the client did not ask its user", extra={"why": str(exc)[:200]})
        return None

    async def ask_by_the_answer(question: str, code: str) -> bool | None:
        said = (params.input_responses or {}).get(APPROVAL)
        if isinstance(said, ElicitResult) and hmac.compare_digest((params.request_state or "").encode(), code.encode()):
            return _is_yes(said)
        raise PersonAsked(question, code)

    return ask_by_the_answer if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS else ask_now


def _is_yes(said: ElicitResult) -> bool | None:
    """None if the dialogue was closed without a choice."""
    if said.action == "cancel":
        return None
    return said.action == "accept" and (said.content or {}).get("draw") is True


def _caller(ctx: "ServerRequestContext[House]") -> Caller:
    session = ctx.request
    assert isinstance(session, Session)
    introduced = ctx.session.client_params
    client = client_named("unknown", "")
    if introduced is not None:
        client = client_named(introduced.client_info.name, introduced.client_info.version)

    async def progress(seconds: float, message: str) -> None:
        await ctx.session.report_progress(seconds, None, message)

    return Caller(session, client, progress)


@contextmanager
def _refusals_as_errors(ctx: "ServerRequestContext[House]", uri: str = "") -> Iterator[None]:
    """What is said no with, as the client's era says it."""
    try:
        yield
    except EventLogError as exc:
        raise MCPError(code=INTERNAL_ERROR, message="imaged is stopping: its event log cannot be written.") from exc
    except Refused as exc:
        if exc.code != resources.NO_SUCH_RESOURCE:
            raise MCPError(code=INVALID_PARAMS, message=str(exc)) from exc
        code = INVALID_PARAMS if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS else RESOURCE_NOT_FOUND
        raise MCPError(code=code, message=str(exc), data={"uri": uri}) from exc
    except (IndexUnavailable, FileFailed) as exc:
        raise MCPError(code=INTERNAL_ERROR, message=str(exc)) from exc


async def _receive(ctx: "ServerRequestContext[House]", given: Mapping[str, Any]) -> None:
    """The fact that this was asked. It rides along with the next sync."""
    caller = _caller(ctx)
    received = RequestReceived(operation=ctx.method, door=caller.session.door, client=caller.client)
    await ctx.lifespan_context.ledger.post(decisions.receive_request(received, words_of(given)))


def _refused(refusal: Refusal) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(text=refusal.message)],
        structured_content={"error": msgspec.to_builtins(refusal)},
        is_error=True,
    )


def _answered(answer: Answer, links: tuple[resources.Listed, ...]) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(text=texts.text(answer.result))]
    content += [
        ImageContent(
            data=base64.b64encode(attachment.data).decode("ascii"),
            mime_type=attachment.mime_type,
            annotations=Annotations(audience=["user", "assistant"], priority=0.8),
        )
        for attachment in answer.attachments
    ]
    content += [ResourceLink(**_resource(link)) for link in links]
    return CallToolResult(content=content, structured_content=msgspec.to_builtins(answer.result), is_error=answer.failed)


def _resource(listed: resources.Listed) -> dict[str, Any]:
    """The fields of a resource, and of a link to one."""
    return {
        "uri": listed.uri,
        "name": listed.name,
        "title": listed.title,
        "description": listed.description,
        "mime_type": listed.mime_type,
        "size": listed.size_bytes,
        "annotations": Annotations(audience=["user", "assistant"], priority=listed.priority, last_modified=listed.last_modified),
    }


async def _list_resources(ctx: "ServerRequestContext[House]", params: PaginatedRequestParams | None) -> ListResourcesResult:
    with _refusals_as_errors(ctx):
        listing = await resources.page(ctx.lifespan_context, params.cursor if params else None)
    return ListResourcesResult(
        resources=[Resource(**_resource(listed)) for listed in listing.resources], next_cursor=listing.next_cursor
    )


async def _list_resource_templates(
    ctx: "ServerRequestContext[House]", params: PaginatedRequestParams | None
) -> ListResourceTemplatesResult:
    return ListResourceTemplatesResult(
        resource_templates=[
            ResourceTemplate(
                uri_template=template.uri,
                name=template.name,
                title=template.title,
                description=template.description,
                mime_type=template.mime_type,
            )
            for template in resources.TEMPLATES
        ]
    )


async def _read_resource(ctx: "ServerRequestContext[House]", params: ReadResourceRequestParams) -> ReadResourceResult:
    with _refusals_as_errors(ctx, params.uri):
        await _receive(ctx, {"uri": params.uri})
        contents = await resources.read(ctx.lifespan_context, params.uri)
    if contents.text is not None:
        text = TextResourceContents(uri=params.uri, mime_type=contents.mime_type, text=contents.text)
        return ReadResourceResult(contents=[text])
    blob = BlobResourceContents(uri=params.uri, mime_type=contents.mime_type, blob=contents.blob or "")
    return ReadResourceResult(contents=[blob])


async def _list_prompts(ctx: "ServerRequestContext[House]", params: PaginatedRequestParams | None) -> ListPromptsResult:
    return ListPromptsResult(
        prompts=[
            Prompt(
                name=prompt.name,
                title=prompt.title,
                description=prompt.description,
                arguments=[PromptArgument(**msgspec.structs.asdict(argument)) for argument in prompt.arguments],
            )
            for prompt in prompts.PROMPTS.values()
        ]
    )


async def _get_prompt(ctx: "ServerRequestContext[House]", params: GetPromptRequestParams) -> GetPromptResult:
    given = params.arguments or {}
    with _refusals_as_errors(ctx):
        await _receive(ctx, {"name": params.name, "arguments": given})
        settings = _caller(ctx).session.settings
        situation = prompts.Situation(
            model=settings.model,
            offline=settings.account.backend == "offline",
            today=ctx.lifespan_context.now().date(),
        )
        text = prompts.message(params.name, given, situation)
        title = prompts.find(params.name).title
    return GetPromptResult(description=title, messages=[PromptMessage(role="user", content=TextContent(text=text))])


async def _complete(ctx: "ServerRequestContext[House]", params: CompleteRequestParams) -> CompleteResult:
    house, asked = ctx.lifespan_context, params.argument
    with _refusals_as_errors(ctx):
        if isinstance(params.ref, ResourceTemplateReference):
            chosen = (params.context.arguments if params.context else None) or {}
            found = await resources.complete(house, params.ref.uri, asked.name, asked.value, chosen)
        else:
            found = await prompts.complete(house, params.ref.name, asked.name, asked.value)
    more = found.total > len(found.values)
    return CompleteResult(completion=Completion(values=list(found.values), total=found.total, has_more=more))
