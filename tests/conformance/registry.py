"""The server that the conformance scenarios talk to: tools, resources and prompts by the names that they know.

Rule: what the scenarios' own descriptions ask for, and no more. It stands behind the transport that is tested, and
knows nothing of it. Nothing of `imaged` itself is here: what our tools say is tested elsewhere.
"""

import base64
import io
import json
import wave
from collections.abc import Awaitable, Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ServerEvent, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    ClientCapabilities,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ContentBlock,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    GetPromptRequestParams,
    GetPromptResult,
    ImageContent,
    InputRequest,
    InputRequiredResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListRootsRequest,
    ListRootsResult,
    ListToolsResult,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    SamplingCapability,
    SamplingMessage,
    SetLevelRequestParams,
    TextContent,
    TextResourceContents,
    Tool,
)
from PIL import Image

Context = ServerRequestContext[Any]
Called = CallToolResult | InputRequiredResult
Call = Callable[[Context, CallToolRequestParams], Awaitable[Called]]

SCHEMAS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("schemas.json").read_text("utf-8"))
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
TEMPLATE = "test://template/{id}/data"

_changes = InMemorySubscriptionBus()


class _Tool(NamedTuple):
    description: str
    call: Call


@cache
def _png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


@cache
def _wav() -> str:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(8000)
        sound.writeframes(b"\x80" * 8)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _text(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)])


def _picture() -> ImageContent:
    return ImageContent(data=_png(), mime_type="image/png")


def _embedded(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _always(*content: ContentBlock, is_error: bool = False) -> Call:
    async def call(ctx: Context, params: CallToolRequestParams) -> Called:
        return CallToolResult(content=list(content), is_error=is_error)

    return call


async def _report_progress(ctx: Context, params: CallToolRequestParams) -> Called:
    for percent in (0, 50, 100):
        await ctx.session.report_progress(percent, 100, f"{percent} of 100")
    return _text("done in three steps")


async def _log(ctx: Context, params: CallToolRequestParams) -> Called:
    """Since 2026-07-28, nothing is sent unless this very request asked for it."""
    for what in ("started", "processing data", "completed"):
        await ctx.session.send_log_message("info", f"Tool execution {what}", related_request_id=ctx.request_id)
    return _text("three things were logged, if that was wanted")


async def _sample(ctx: Context, params: CallToolRequestParams) -> Called:
    prompt = str((params.arguments or {})["prompt"])
    answer = await ctx.session.send_request(_sampling(prompt, tokens_max=100), CreateMessageResult)
    return _text(f"LLM response: {answer.content}")


async def _elicit(schema: str, ctx: Context, params: CallToolRequestParams) -> Called:
    message = str((params.arguments or {}).get("message", "Please choose"))
    answer = await ctx.session.elicit_form(message, SCHEMAS[schema], ctx.request_id)
    return _text(f"User response: {answer.action}, {json.dumps(answer.content)}")


async def _need_sampling(ctx: Context, params: CallToolRequestParams) -> Called:
    needed = ClientCapabilities(sampling=SamplingCapability())
    if not ctx.session.check_client_capability(needed):
        data = {"requiredCapabilities": needed.model_dump(by_alias=True, exclude_none=True)}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs a client that can sample.", data)
    return _text("the client can sample")


async def _change(event: ServerEvent, ctx: Context, params: CallToolRequestParams) -> Called:
    await _changes.publish(event)
    return _text("told whoever listens")


def _elicitation(message: str, schema: str) -> ElicitRequest:
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=SCHEMAS[schema]))


def _sampling(prompt: str, tokens_max: int) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(text=prompt))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=tokens_max))


QUESTIONS: dict[str, InputRequest] = {
    "user_name": _elicitation("What is your name?", "asked: name"),
    "capital_question": _sampling("What is the capital of France?", tokens_max=100),
    "greeting": _sampling("Generate a greeting", tokens_max=50),
    "client_roots": ListRootsRequest(),
    "confirm": _elicitation("Please confirm", "asked: ok"),
    "step1": _elicitation("Step 1: What is your name?", "asked: name"),
    "step2": _elicitation("Step 2: What is your favorite color?", "asked: color"),
    "user_context": _elicitation("What context should the prompt use?", "asked: context"),
}
ANSWERS = {ElicitRequest: ElicitResult, CreateMessageRequest: CreateMessageResult, ListRootsRequest: ListRootsResult}


def _asked(names: tuple[str, ...], state: str | None = None) -> InputRequiredResult:
    return InputRequiredResult(input_requests={name: QUESTIONS[name] for name in names}, request_state=state)


def _are_answered(names: tuple[str, ...], params: CallToolRequestParams | GetPromptRequestParams) -> bool:
    """Whether each question has an answer of its kind. What was not asked for does not matter."""
    answers = params.input_responses or {}
    return all(isinstance(answers.get(name), ANSWERS[type(QUESTIONS[name])]) for name in names)


async def _ask(names: tuple[str, ...], ctx: Context, params: CallToolRequestParams) -> Called:
    if not _are_answered(names, params):
        return _asked(names)
    return _text(json.dumps({name: str((params.input_responses or {})[name]) for name in names}))


async def _ask_in_rounds(rounds: tuple[tuple[str, ...], ...], ctx: Context, params: CallToolRequestParams) -> Called:
    """One round after the other; how many are over is all that the state says. Sealing it is the middleware's."""
    over = 0
    if params.request_state is not None:
        over = int(params.request_state)
        over += _are_answered(rounds[over], params)
    return _text("state-ok") if over == len(rounds) else _asked(rounds[over], str(over))


async def _ask_what_the_client_can_answer(ctx: Context, params: CallToolRequestParams) -> Called:
    can = ctx.session.client_capabilities or ClientCapabilities()
    names = tuple(
        name
        for name, able in (("user_name", can.elicitation), ("greeting", can.sampling), ("client_roots", can.roots))
        if able is not None
    )
    return _asked(names) if names and not _are_answered(names, params) else _text("nothing to ask")


TOOLS = {
    "test_simple_text": _Tool("Says one sentence", _always(TextContent(text="This is a simple text response for testing."))),
    "test_image_content": _Tool("Shows a picture", _always(_picture())),
    "test_audio_content": _Tool("Plays a sound", _always(AudioContent(data=_wav(), mime_type="audio/wav"))),
    "test_embedded_resource": _Tool(
        "Holds a resource",
        _always(_embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
    ),
    "test_multiple_content_types": _Tool(
        "Says, shows and holds",
        _always(
            TextContent(text="Multiple content types test:"),
            _picture(),
            _embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ),
    ),
    "test_error_handling": _Tool(
        "Fails", _always(TextContent(text="This tool intentionally returns an error for testing"), is_error=True)
    ),
    "test_tool_with_progress": _Tool("Tells how far it is", _report_progress),
    "test_tool_with_logging": _Tool("Logs", _log),
    "test_logging_tool": _Tool("Logs if wanted", _log),
    "test_sampling": _Tool("Has the client sample", _sample),
    "test_elicitation": _Tool("Asks the user", partial(_elicit, "asked: username and email")),
    "test_elicitation_sep1034_defaults": _Tool("Asks with defaults", partial(_elicit, "asked: every primitive with a default")),
    "test_elicitation_sep1330_enums": _Tool("Asks for choices", partial(_elicit, "asked: every kind of choice")),
    "json_schema_2020_12_tool": _Tool("Has a schema of every kind of keyword", _always(TextContent(text="never looked at"))),
    "test_header_parameter": _Tool("Has a parameter that HTTP repeats in a header", _always(TextContent(text="took it"))),
    "test_missing_capability": _Tool("Needs a client that samples", _need_sampling),
    "test_trigger_tool_change": _Tool("Says that tools changed", partial(_change, ToolsListChanged())),
    "test_trigger_prompt_change": _Tool("Says that prompts changed", partial(_change, PromptsListChanged())),
    "test_streaming_elicitation": _Tool("Asks within its answer", partial(_ask, ("user_name",))),
    "test_input_required_result_elicitation": _Tool("Asks for a name", partial(_ask, ("user_name",))),
    "test_input_required_result_sampling": _Tool("Asks the model", partial(_ask, ("capital_question",))),
    "test_input_required_result_list_roots": _Tool("Asks for roots", partial(_ask, ("client_roots",))),
    "test_input_required_result_request_state": _Tool("Keeps state", partial(_ask_in_rounds, (("confirm",),))),
    "test_input_required_result_tampered_state": _Tool("Keeps state sealed", partial(_ask_in_rounds, (("confirm",),))),
    "test_input_required_result_multi_round": _Tool("Asks twice", partial(_ask_in_rounds, (("step1",), ("step2",)))),
    "test_input_required_result_multiple_inputs": _Tool(
        "Asks three things at once", partial(_ask_in_rounds, (("user_name", "greeting", "client_roots"),))
    ),
    "test_input_required_result_capabilities": _Tool("Asks what can be answered", _ask_what_the_client_can_answer),
}


async def _list_tools(ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(
        tools=[
            Tool(name=name, description=tool.description, input_schema=SCHEMAS.get(name, NO_ARGUMENTS))
            for name, tool in TOOLS.items()
        ]
    )


async def _call_tool(ctx: Context, params: CallToolRequestParams) -> Called:
    if params.name not in TOOLS:
        raise MCPError(INVALID_PARAMS, f"There is no tool {params.name!r}.")
    return await TOOLS[params.name].call(ctx, params)


RESOURCES = {
    "test://static-text": ("text/plain", "This is the content of the static text resource."),
    "test://static-binary": ("image/png", None),
    "test://watched-resource": ("text/plain", "Watched resource content"),
}


async def _list_resources(ctx: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
    return ListResourcesResult(
        resources=[
            Resource(uri=uri, name=uri.removeprefix("test://"), description="For testing", mime_type=mime_type)
            for uri, (mime_type, _) in RESOURCES.items()
        ]
    )


async def _list_templates(ctx: Context, params: PaginatedRequestParams | None) -> ListResourceTemplatesResult:
    template = ResourceTemplate(uri_template=TEMPLATE, name="template", description="For testing", mime_type="application/json")
    return ListResourceTemplatesResult(resource_templates=[template])


async def _read_resource(ctx: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
    before, after = TEMPLATE.split("{id}")
    mime_type, text = RESOURCES.get(params.uri, ("application/json", None))
    if params.uri.startswith(before) and params.uri.endswith(after):
        text = json.dumps({"id": params.uri.removeprefix(before).removesuffix(after), "templateTest": True})
    elif params.uri not in RESOURCES:
        raise MCPError(INVALID_PARAMS, "Resource not found", {"uri": params.uri})
    if text is None:
        return ReadResourceResult(contents=[BlobResourceContents(uri=params.uri, mime_type=mime_type, blob=_png())])
    return ReadResourceResult(contents=[TextResourceContents(uri=params.uri, mime_type=mime_type, text=text)])


async def _acknowledge(ctx: Context, params: Any) -> EmptyResult:
    return EmptyResult()


PROMPTS = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
    "test_input_required_result_prompt": (),
}


async def _list_prompts(ctx: Context, params: PaginatedRequestParams | None) -> ListPromptsResult:
    return ListPromptsResult(
        prompts=[
            Prompt(
                name=name,
                description="For testing",
                arguments=[PromptArgument(name=argument, description="For testing", required=True) for argument in arguments],
            )
            for name, arguments in PROMPTS.items()
        ]
    )


async def _get_prompt(ctx: Context, params: GetPromptRequestParams) -> GetPromptResult | InputRequiredResult:
    given = params.arguments or {}
    content: list[ContentBlock]
    match params.name:
        case "test_simple_prompt":
            content = [TextContent(text="This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [TextContent(text=f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
        case "test_prompt_with_embedded_resource":
            content = [_embedded(given["resourceUri"], "text/plain", "Embedded resource content for testing.")]
        case "test_prompt_with_image":
            content = [_picture(), TextContent(text="Please analyze the image above.")]
        case "test_input_required_result_prompt":
            if not _are_answered(("user_context",), params):
                return _asked(("user_context",))
            content = [TextContent(text=str((params.input_responses or {})["user_context"]))]
        case unknown:
            raise MCPError(INVALID_PARAMS, f"There is no prompt {unknown!r}.")
    return GetPromptResult(messages=[PromptMessage(role="user", content=each) for each in content])


async def _complete(ctx: Context, params: CompleteRequestParams) -> CompleteResult:
    values = [value for value in ("paris", "park", "party", "test1") if value.startswith(params.argument.value)]
    return CompleteResult(completion=Completion(values=values, total=len(values), has_more=False))


def server() -> Server[Any]:
    """All of it. What a client keeps between two rounds is sealed, as the tampering scenario demands."""
    made: Server[Any] = Server(
        "conformance-registry",
        version="1",
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
        on_list_resources=_list_resources,
        on_list_resource_templates=_list_templates,
        on_read_resource=_read_resource,
        on_subscribe_resource=_acknowledge,
        on_unsubscribe_resource=_acknowledge,
        on_subscriptions_listen=ListenHandler(_changes),
        on_list_prompts=_list_prompts,
        on_get_prompt=_get_prompt,
        on_completion=_complete,
    )
    made.add_request_handler("logging/setLevel", SetLevelRequestParams, _acknowledge)
    made.middleware[:] = [RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="conformance-registry")]
    return made
