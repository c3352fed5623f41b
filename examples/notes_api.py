# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi>=0.115", "uvicorn>=0.30"]
# ///
"""A FastAPI program as it would run anywhere, port 8000 written into it: notes kept in memory."""

import itertools

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

app = FastAPI(title="Notes")
notes: dict[int, "Note"] = {}
numbers = itertools.count(1)


class Note(BaseModel):
    text: str
    done: bool = False


@app.get("/")
def index(request: Request) -> dict:
    return {"app": "notes", "count": len(notes), "query": request.url.query}


@app.post("/notes", status_code=201)
def add(note: Note) -> dict:
    number = next(numbers)
    notes[number] = note
    return {"id": number, **note.model_dump()}


@app.get("/notes/{number}")
def read(number: int) -> Note:
    if number not in notes:
        raise HTTPException(404, "no such note")
    return notes[number]


if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=8000)
