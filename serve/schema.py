"""Requests and responses of the OpenAI API, as far as this endpoint has it. Unknown fields are ignored, as OpenAI does.

A field that would change the result and is not supported is an error, never silently dropped. `think` and
`include_thoughts` are our own; the OpenAI client sends them as `extra_body`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ApiError(Exception):
    """An error with an HTTP status and OpenAI's body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    include_usage: bool = False


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    n: Literal[1] = 1
    stop: str | list[str] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: Literal[0, False] | None = None
    think: Literal["auto", "always", "never"] = Field(default="auto", description="ours: when a thinking model thinks")
    include_thoughts: bool = Field(default=False, description="ours: whether the answer shows what was thought")

    @field_validator("stop")
    @classmethod
    def _few_and_not_empty(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 4 or not all(texts):
            raise ValueError("at most 4 stop texts, none of them empty")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: str = Field(min_length=1)
    echo: Literal[False] = False
    best_of: Literal[1] = 1


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: None = None
