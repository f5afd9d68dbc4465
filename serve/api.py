"""The OpenAI-compatible HTTP interface over an engine: models, completions and chat, streamed or not.

Wrong input gets OpenAI's JSON with a 4xx status. A client that goes away ends its generation.
"""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from phases.cognate.generate import Sampling
from phases.errors import ForgeError
from serve.chat import chat_ids
from serve.engine import Engine, Overloaded, Reply
from serve.schema import ApiError, ChatRequest, CompletionRequest

MAX_BODY_BYTES = 4 << 20
MAX_NEW_TOKENS = 4096
_DEFAULT_NEW_TOKENS = 128
_OPEN_PATHS = ("/healthz", "/readyz")


def build_api(engine: Engine, name: str, key: str | None) -> FastAPI:
    """Return the application that serves `engine` as the model `name`; with a `key`, a bearer token is required."""
    api = FastAPI(title="Agent Forge", docs_url=None, redoc_url=None)
    _add_errors(api)
    _add_guard(api, key)

    @api.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @api.get("/readyz")
    async def ready() -> Response:
        try:
            await asyncio.to_thread(engine.check)
        except Exception as error:
            return JSONResponse({"status": "broken", "error": str(error)}, 503)
        return JSONResponse({"status": "ready"})

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name)]}

    @api.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        _check_model(model, name)
        return _model(name)

    @api.post("/v1/completions")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        _check_model(request.model, name)
        ids = engine.tokenizer.encode(request.prompt, add_special_tokens=False).ids
        sampling = _sampling(request, request.max_tokens)
        answer = _Answer("text_completion", "cmpl", name, lambda text, _: {"text": text})
        return await _respond(engine.generate(ids, sampling, request.think), answer, request, http)

    @api.post("/v1/chat/completions")
    async def chat(request: ChatRequest, http: Request) -> Response:
        _check_model(request.model, name)
        sampling = _sampling(request, request.max_completion_tokens or request.max_tokens)
        answer = _Answer("chat.completion", "chatcmpl", name, _chat_choice)
        ids = chat_ids(engine.tokenizer, request.messages)
        return await _respond(engine.generate(ids, sampling, request.think), answer, request, http)

    return api


class _Answer:
    """How the two kinds of completion are written."""

    def __init__(self, kind: str, prefix: str, model: str, choice: Callable[[str, bool], dict[str, Any]]) -> None:
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.kind, self.choice = kind, choice

    def whole(self, reply: Reply, thoughts: dict[str, Any]) -> dict[str, Any]:
        choice = self.choice(reply.result.text, False) | thoughts
        choice |= {"index": 0, "finish_reason": reply.result.finish_reason, "logprobs": None}
        return {**self.head, "object": self.kind, "choices": [choice], "usage": _usage(reply)}

    def piece(self, text: str, finish: str | None, thoughts: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": finish, "logprobs": None, **self.choice(text, True), **thoughts}
        return {**self.head, "object": self._streamed, "choices": [choice]}

    def usage(self, reply: Reply) -> dict[str, Any]:
        return {**self.head, "object": self._streamed, "choices": [], "usage": _usage(reply)}

    @property
    def _streamed(self) -> str:
        return self.kind + (".chunk" if self.kind.startswith("chat") else "")


def _chat_choice(text: str, streamed: bool) -> dict[str, Any]:
    return {"delta" if streamed else "message": {"role": "assistant", "content": text}}


async def _respond(reply: Reply, answer: _Answer, request: CompletionRequest | ChatRequest, http: Request) -> Response:
    if request.stream:
        events = _events(reply, answer, request)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    async for _ in reply.pieces:
        if await http.is_disconnected():
            break
    if reply.generation.result is None:
        return Response(status_code=499)  # nobody is there to read it
    return JSONResponse(answer.whole(reply, _thoughts(reply, 0) if request.include_thoughts else {}))


async def _events(reply: Reply, answer: _Answer, request: CompletionRequest | ChatRequest) -> AsyncIterator[str]:
    """Yield the events of a streamed answer; thoughts come with the piece of text that follows them."""
    shown = 0

    def new_thoughts() -> dict[str, Any]:
        nonlocal shown
        found = _thoughts(reply, shown) if request.include_thoughts else {}
        shown += len(found.get("thoughts", ()))
        return found

    async for piece in reply.pieces:
        yield _event(answer.piece(piece, None, new_thoughts()))
    yield _event(answer.piece("", reply.result.finish_reason, new_thoughts()))
    if request.stream_options.include_usage:
        yield _event(answer.usage(reply))
    yield "data: [DONE]\n\n"


def _thoughts(reply: Reply, start: int) -> dict[str, Any]:
    """Return what was thought from the thought number `start` on."""
    records = reply.thoughtful.thoughts[start:] if reply.thoughtful else []
    return {"thoughts": [asdict(record) for record in records]}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _usage(reply: Reply) -> dict[str, float]:
    """Return OpenAI's counts of tokens read and said; where the model can think, also what that cost."""
    prompt, completion = reply.result.prompt_tokens, reply.result.completion_tokens
    usage: dict[str, float] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if reply.thoughtful is None:
        return usage
    return usage | {"thought_tokens": reply.thoughtful.thought_tokens, "thought_per_token": reply.thoughtful.cost}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "agent-forge"}


def _check_model(asked: str, name: str) -> None:
    if asked != name:
        message = f"The model {asked!r} does not exist; this endpoint serves {name!r}."
        raise ApiError(404, message, param="model", code="model_not_found")


def _sampling(request: CompletionRequest | ChatRequest, max_tokens: int | None) -> Sampling:
    wanted = max_tokens or _DEFAULT_NEW_TOKENS
    if wanted > MAX_NEW_TOKENS:
        raise ApiError(400, f"At most {MAX_NEW_TOKENS} tokens can be generated at once.", param="max_tokens")
    return Sampling(
        max_new_tokens=wanted,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        stop=request.stops,
        seed=request.seed,
    )


def _add_errors(api: FastAPI) -> None:
    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body, error.status)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse(ApiError(400, f"{where or 'body'}: {first['msg']}", param=where or None).body, 400)

    async def overloaded(_: Request, __: Exception) -> Response:
        body = ApiError(429, "All places are taken; try again in a second.", code="overloaded").body
        return JSONResponse(body, 429, {"Retry-After": "1"})

    async def unknown(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body, error.status_code)

    async def forge_error(_: Request, error: Exception) -> Response:
        return JSONResponse(ApiError(400, str(error)).body, 400)

    api.add_exception_handler(ApiError, api_error)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(Overloaded, overloaded)
    api.add_exception_handler(HTTPException, unknown)
    api.add_exception_handler(ForgeError, forge_error)


def _add_guard(api: FastAPI, key: str | None) -> None:
    """Refuse what is too large or not authorised, and give each response the request's id."""

    @api.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        refusal = _refusal(request, key)
        response = JSONResponse(refusal.body, refusal.status) if refusal else await follow(request)
        response.headers["X-Request-ID"] = request.headers.get("X-Request-ID") or uuid.uuid4().hex
        return response


def _refusal(request: Request, key: str | None) -> ApiError | None:
    length = request.headers.get("Content-Length", "0")
    if request.method == "POST" and not (length.isdigit() and int(length) <= MAX_BODY_BYTES):
        return ApiError(413, f"The body may have {MAX_BODY_BYTES} bytes.")
    if key is None or request.url.path in _OPEN_PATHS:
        return None
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), key.encode()):
        message = "The API key is missing or wrong: send `Authorization: Bearer KEY`."
        return ApiError(401, message, code="invalid_api_key")
    return None
