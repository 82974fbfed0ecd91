"""What every reader owes, as a test: `ragfm.testing.check_reader`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ragfm.core.errors import ContextOverflowError
from ragfm.core.types import Message, Reader, Sampling, Stream

_ASKED = (Message("user", "Count from one to ten, in words."),)
_OTHER = (Message("system", "You are brief."), Message("user", "Which colours does a rainbow have?"))
_SIGNS = (Message("user", "Repeat exactly: 😀🎉 naïve café 日本語 😀🎉"),)
_SOME = Sampling(max_tokens=16)
_SECONDS = 300.0
"""How long two answers at once may take before they count as stuck; models on a busy CPU are slow."""


def check_reader(reader: Reader) -> None:
    """Check a reader's counts, limits, stop strings, streams, threads and window, with about ten short answers.

    Raises AssertionError with a plain sentence. The reader must say something of at least three tokens.
    """
    text = _check_counts(reader)
    _check_limits(reader, text)
    _check_stop(reader, text)
    _check_early_end(reader, text)
    _check_threads(reader, text)
    _check_window(reader)
    _check_signs(reader)


def _read(reader: Reader, messages: Sequence[Message], sampling: Sampling = _SOME) -> tuple[str, Stream]:
    stream = reader.stream(messages, sampling)
    return "".join(stream), stream


def _check_counts(reader: Reader) -> str:
    text, stream = _read(reader, _ASKED)
    counted, used = reader.count_tokens(_ASKED), stream.usage.prompt_tokens
    right = counted == used if getattr(reader, "counts_exactly", True) else counted >= used
    assert right, f"count_tokens says {counted} tokens, and the usage of the same prompt {used}."
    assert 0 <= stream.usage.cached_tokens < used, "cached_tokens is not between 0 and prompt_tokens."
    assert text, "The reader said nothing."
    assert stream.finish_reason in ("stop", "length"), f"finish_reason is {stream.finish_reason!r} after the end."
    again, _ = _read(reader, _ASKED)
    assert again == text, f"At temperature 0 the same prompt gave {text!r} and then {again!r}."
    return text


def _check_limits(reader: Reader, text: str) -> None:
    short, stream = _read(reader, _ASKED, Sampling(max_tokens=2))
    spoken = stream.usage.completion_tokens
    assert spoken == 2, f"With max_tokens=2 the reader generated {spoken} tokens."
    assert stream.finish_reason == "length", f"Cut at max_tokens, it says finish_reason={stream.finish_reason!r}."
    assert text.startswith(short), f"With a lower max_tokens the text is another one: {short!r}, not {text!r}."


def _check_stop(reader: Reader, text: str) -> None:
    middle = len(text) // 2
    for stop in (text[middle : middle + 1], text[middle : middle + 4]):
        cut, stream = _read(reader, _ASKED, Sampling(max_tokens=16, stop=("\0never", stop)))
        expected = text[: text.index(stop)]
        assert cut == expected, f"With the stop string {stop!r} it said {cut!r}, not {expected!r}."
        assert stream.finish_reason == "stop", f"At a stop string, it says finish_reason={stream.finish_reason!r}."


def _check_early_end(reader: Reader, text: str) -> None:
    with reader.stream(_ASKED, _SOME) as stream:
        next(stream)
    stream.close()
    assert next(stream, None) is None, "A stream that was closed goes on."
    said: list[str] = []
    _together(lambda: next(reader.stream(_OTHER, _SOME)))  # abandoned
    _together(lambda: reader.stream(_OTHER, _SOME))  # never begun
    _together(lambda: said.append(_read(reader, _ASKED)[0]))
    assert said == [text], "After a stream was closed and another one abandoned, the reader answers otherwise."


def _check_threads(reader: Reader, text: str) -> None:
    other, _ = _read(reader, _OTHER)
    said: dict[str, str] = {}
    _together(
        lambda: said.update(asked=_read(reader, _ASKED)[0]),
        lambda: said.update(other=_read(reader, _OTHER)[0]),
        lambda: said.update(counted=str(reader.count_tokens(_OTHER))),
        lambda: _leave(reader, _OTHER),
        lambda: _leave(reader, _ASKED),
    )
    expected = {"asked": text, "other": other, "counted": str(reader.count_tokens(_OTHER))}
    assert said == expected, f"Asked from several threads at once, it said {said}, and alone {expected}."


def _leave(reader: Reader, messages: Sequence[Message]) -> None:
    """Read one piece, as somebody who then closes the window."""
    with reader.stream(messages, _SOME) as stream:
        next(stream)


def _together(*jobs: Callable[[], object]) -> None:
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
        assert not thread.is_alive(), f"The reader is stuck: no answer within {_SECONDS:.0f} seconds."


def _check_window(reader: Reader) -> None:
    too_long = (Message("user", "word " * reader.context_tokens),)
    said = ""
    try:
        reader.stream(too_long, _SOME)
    except ContextOverflowError as error:
        said = str(error)
    assert said, "stream() takes a prompt longer than the window; ContextOverflowError is due at once."
    for number in (reader.count_tokens(too_long), reader.context_tokens):
        assert str(number) in said, f"The error on a prompt that is too long does not name {number}: {said}"


def _check_signs(reader: Reader) -> None:
    for limit in (1, 2, 3, 16):
        pieces = list(reader.stream(_SIGNS, Sampling(max_tokens=limit)))
        assert all(pieces), "A stream gave an empty piece."
        text = "".join(pieces)
        assert "�" not in text, f"A character was torn at a token's border: {text!r}."
        text.encode()  # fails on half of a surrogate pair
