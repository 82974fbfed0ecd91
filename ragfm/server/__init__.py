"""The server: collections behind OpenAI's API, for many users.

    uvicorn (run.py) ─→ guard.py: key, rate, limits, log ─→ chat.py, search.py, documents.py
                                                               │ a turn (turns.py) at a reader, in a thread
                                                               ▼
                             served.py: the model's Rag over `collection.as_groups(key.sees)`

Uploads are files (uploads.py) which a process of its own indexes (indexing.py, index_process.py); the server itself
can't write to a collection. The page at `/` is files (page/, pages.py) that ask the same API. service.py is what all
routes share, app.py puts it together; forms are in wire.py, errors in errors.py, keys in keys.py, the log in logs.py.
"""
