"""Renders chat templates in a confined process, as `apply_chat_template` of transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ragfm.core.errors import UnsupportedError


def handle(
    _: object, source: str, variables: Mapping[str, Any], turns: Sequence[Mapping[str, Any]] | None
) -> tuple[None, bytes]:
    """Render a conversation, or without one only check the template. Raises UnsupportedError with the reason."""
    try:
        template = _compile(source)
        text = "" if turns is None else template.render(messages=turns, **variables)
    except MemoryError:
        raise
    except Exception as error:  # a template may raise anything
        raise UnsupportedError(str(error) or type(error).__name__) from error
    return None, text.encode("utf-8", "surrogatepass")


@lru_cache(maxsize=16)
def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's filter escapes for HTML

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().astimezone().strftime(form),
    }
    return environment.from_string(source)


class _GenerationBlock(Extension):
    """The block `generation`, which marks text of the assistant for training. Here, it is only its content."""

    tags = {"generation"}  # noqa: RUF012  an attribute of the base class

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
