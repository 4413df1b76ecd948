"""A small chat app on prefloop: FastAPI and openai-python.

    PREFLOOP_URL=http://127.0.0.1:8800 PREFLOOP_KEY=pl_… python app.py      # then open http://127.0.0.1:3000

The key stays here. The page streams from /chat; the choice goes from the browser to the gateway with the comparison's own token.
Not covered: signing users in (a cookie names the browser), storing conversations (the page keeps its own).
"""

import json
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal

import openai
import uvicorn
from fastapi import Cookie, FastAPI
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, Field

GATEWAY = os.environ.get("PREFLOOP_URL", "http://127.0.0.1:8800").rstrip("/")
WEB = Path(__file__).resolve().parent.parent / "web"
SYSTEM = {"role": "system", "content": "Answer briefly."}
POLICY = (
    f"default-src 'none'; script-src 'self' {GATEWAY}; connect-src 'self' {GATEWAY}; style-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SHOWN = {400, 413, 429, 503}  # what the person may learn of a refusal; the rest is between this app and the gateway

client = openai.AsyncOpenAI(base_url=f"{GATEWAY}/v1", api_key=os.environ["PREFLOOP_KEY"], max_retries=2)
app = FastAPI()


class Message(BaseModel):
    """What the page may put into a conversation: no system messages."""

    role: Literal["user", "assistant"]
    content: str


class Talk(BaseModel):
    """A conversation that waits for its next answer."""

    conversation: str = Field(max_length=100)
    messages: list[Message] = Field(min_length=1)


class Thumb(BaseModel):
    """What a person thinks of one answer."""

    completion: str = Field(pattern=r"^[\w-]{1,100}$")
    thumb: Literal["up", "down"]


@app.get("/")
def show_page(user: Annotated[str | None, Cookie()] = None) -> Response:
    page = (WEB / "index.html").read_text().replace("{{gateway}}", GATEWAY)
    response = HTMLResponse(page, headers={"content-security-policy": POLICY})
    response.set_cookie("user", user or secrets.token_urlsafe(16), max_age=31_536_000, httponly=True, samesite="lax")
    return response


@app.get("/{name}")
def show_file(name: Literal["chat.js", "chat.css"]) -> Response:
    return FileResponse(WEB / name)


@app.post("/chat")
async def chat(talk: Talk, user: Annotated[str | None, Cookie()] = None) -> Response:
    headers = {"X-Prefloop-Compare": "auto", "X-Prefloop-Conversation": talk.conversation}
    if user:
        headers["X-Prefloop-User"] = user
    try:
        stream = await client.chat.completions.create(
            model="default",
            messages=[SYSTEM, *(message.model_dump() for message in talk.messages)],
            stream=True,
            extra_headers=headers,
        )
    except openai.APIStatusError as error:
        status = error.status_code if error.status_code in SHOWN else 502
        return JSONResponse({"error": {"message": error.message, "code": error.code}}, status)
    except openai.APIConnectionError:
        return JSONResponse({"error": {"message": "The model cannot be reached.", "code": None}}, 503)
    return StreamingResponse(relay(stream), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def relay(stream: openai.AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str]:
    """Pass every chunk on. Leaving the block closes the request to the gateway, which stops the engine."""
    async with stream:
        try:
            async for chunk in stream:
                yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"  # `comparison` is among its fields
            yield "data: [DONE]\n\n"
        except openai.APIError:
            error = {"message": "The answer broke off.", "code": "engine_lost"}
            yield f"data: {json.dumps({'error': error})}\n\n"


@app.post("/thumb")
async def take_thumb(given: Thumb) -> Response:
    options = {"headers": {"Idempotency-Key": secrets.token_hex(16)}}  # the client's own retries then count once
    try:
        await client.post(
            f"/completions/{given.completion}/signal", body={"thumb": given.thumb}, cast_to=object, options=options
        )
    except openai.APIError:
        return Response(status_code=502)
    return Response(status_code=204)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "3000")), log_level="warning")
