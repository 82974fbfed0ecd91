"""A FastAPI application that answers from a collection. If a client goes away, its answer ends, and its slot is free.

pip install 'ragfm[server]'
python examples/fastapi/app.py .ragfm
curl 'http://127.0.0.1:8080/ask?question=How+long+is+the+probation+period'
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request

from ragfm import AsyncRag, Collection, Rag

T = TypeVar("T")
CLIENT_CLOSED = 499  # nobody receives it


async def until_disconnect(request: Request, coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. It is cancelled if the client goes away, which FastAPI does not do by itself."""
    task = asyncio.create_task(coroutine)
    try:
        while not (await asyncio.wait([task], timeout=0.5))[0]:
            if await request.is_disconnected():
                raise HTTPException(CLIENT_CLOSED)
        return task.result()
    finally:
        task.cancel()


def create_app(rag: AsyncRag) -> FastAPI:
    """The application."""
    app = FastAPI()

    @app.get("/ask")
    async def answer(request: Request, question: str) -> dict[str, Any]:
        found = await until_disconnect(request, rag.ask(question))
        return {"answer": found.shown, "status": found.status, "sources": [one.uri for one in found.citations]}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(AsyncRag(Rag(Collection.open(sys.argv[1])))), host="127.0.0.1", port=8080)
