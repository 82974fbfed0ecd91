"""The server: collections behind OpenAI's API, for many users.

    uvicorn_server ─→ request_guard: key, rate, limits, log ─→ chat_routes, search_routes, document_routes, mcp_server
                                                                  │ a slot of the reader (fair_queue), in a thread
                                                                  ▼
                                  served_models: the model's Rag over `collection.as_groups(key.visible_groups)`

Uploads are indexed by a process of its own (`index_supervisor`, `index_worker`); the server itself cannot change
documents. Sources with a schedule are synced in the same way (`source_scheduler`). The pages at `/`, `/insights` and
`/review` are static (`page/`, `static_pages`) and use the same API. `service` holds what all routes share, and `app`
puts everything together.

Forms and errors are in `api_models` and `api_errors`, keys in `api_keys`: a file, or the `key_table` of a database.
`sign_in` is for users of an `oidc_provider`, who have what a key has.
`commit_watch` wakes requests that wait for a commit.
`image_routes` shows pages of documents, `log_routes` shows what people asked and takes labels of citations,
`document_parts` reads sections of documents, `event_stream` sends a streamed answer, and `answer_markdown`
makes an answer's text safe to render. `memory_budget` estimates memory before the models are
loaded; `prometheus_metrics` and `json_logging` report what the server does.
"""
