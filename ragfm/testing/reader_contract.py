"""Contract test of readers: `ragfm.testing.check_reader`."""

from __future__ import annotations

import threading
from base64 import b64decode
from collections.abc import Callable, Sequence

from ragfm.core.errors import ContextOverflowError, UnsupportedError
from ragfm.core.types import ImagePart, Message, Reader, Sampling, Stream
from ragfm.testing.contract_checks import require

_COUNT_PROMPT = (Message("user", "Count from one to ten, in words."),)
_RAINBOW_PROMPT = (Message("system", "You are brief."), Message("user", "Which colours does a rainbow have?"))
_EMOJI_PROMPT = (Message("user", "Repeat exactly: 😀🎉 naïve café 日本語 😀🎉"),)
_IMAGE = ImagePart(
    b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAiElEQVR42u1W0QrAIAjU8P9/2T0Eo23NpdW4IF8iqLsuu5RVlWZG"
        "osmxPoFcZsxugK8U7hxsguV84AkmzYPtB4lDU8WjTxrph7Zp0kD06o8D84raj38TgaHAe/xSxM9Ge3MLA38VGASx1invgrkir4hz"
        "PVKS20WUKyUg3GjPeuuBQTOyorlu7AALPik/B63o1QAAAABJRU5ErkJggg=="
    ),
    "image/png",
)
_SAMPLING = Sampling(max_tokens=16)
_SECONDS = 300.0
"""Time limit for several requests at once; models on a busy CPU are slow."""


def check_reader(reader: Reader) -> None:
    """Check a reader's token counts, limits, stop strings, streams, thread safety and window, with ten short answers.

    Of a reader with `vision`, also its use of images. The reader must generate at least three tokens. Raises
    AssertionError with the violation.
    """
    text, stream = _generate(reader, _COUNT_PROMPT)
    counted, used = reader.count_tokens(_COUNT_PROMPT), stream.usage.prompt_tokens
    valid = counted == used if getattr(reader, "counts_exactly", True) else counted >= used
    require(valid, f"count_tokens returns {counted}, but the usage of the same prompt is {used}.")
    require(0 <= stream.usage.cached_tokens < used, "cached_tokens is not between 0 and prompt_tokens.")
    require(text, "The reader said nothing.")
    reason = stream.finish_reason
    require(reason in ("stop", "length"), f"finish_reason is {reason!r} after the end of the stream.")
    second, _ = _generate(reader, _COUNT_PROMPT)
    require(second == text, f"At temperature 0 the same prompt gave {text!r}, then {second!r}.")

    short, stream = _generate(reader, _COUNT_PROMPT, Sampling(max_tokens=2))
    tokens, reason = stream.usage.completion_tokens, stream.finish_reason
    require(tokens == 2, f"With max_tokens=2 the reader generated {tokens} tokens.")
    require(reason == "length", f"finish_reason is {reason!r} for an answer cut at max_tokens, expected 'length'.")
    require(text.startswith(short), f"A lower max_tokens changes the text: {short!r} instead of {text!r}.")

    middle = len(text) // 2
    for stop in (text[middle : middle + 1], text[middle : middle + 4]):
        output, stream = _generate(reader, _COUNT_PROMPT, Sampling(max_tokens=16, stop=("\0never", stop)))
        expected, reason = text[: text.index(stop)], stream.finish_reason
        require(output == expected, f"With the stop string {stop!r} the text is {output!r}, expected {expected!r}.")
        require(reason == "stop", f"finish_reason is {reason!r} at a stop string, expected 'stop'.")

    with reader.stream(_COUNT_PROMPT, _SAMPLING) as stream:
        next(stream)
    stream.close()
    require(next(stream, None) is None, "A closed stream yields more text.")
    outputs: list[str] = []
    _run_in_threads(lambda: next(reader.stream(_RAINBOW_PROMPT, _SAMPLING)))  # abandoned after one piece
    _run_in_threads(lambda: reader.stream(_RAINBOW_PROMPT, _SAMPLING))  # never started
    _run_in_threads(lambda: outputs.append(_generate(reader, _COUNT_PROMPT)[0]))
    require(outputs == [text], "After a closed and an abandoned stream the same prompt has a different answer.")

    _check_threads(reader, text)
    too_long = (Message("user", "word " * reader.context_tokens),)
    message = ""
    try:
        reader.stream(too_long, _SAMPLING)
    except ContextOverflowError as error:
        message = str(error)
    require(message, "stream() must raise ContextOverflowError at once for a prompt longer than the window.")
    for number in (reader.count_tokens(too_long), reader.context_tokens):
        require(str(number) in message, f"The error for a prompt that is too long does not name {number}: {message}")
    for limit in (1, 2, 3, 16):
        pieces = list(reader.stream(_EMOJI_PROMPT, Sampling(max_tokens=limit)))
        require(all(pieces), "A stream yields an empty piece.")
        characters = "".join(pieces)
        require("�" not in characters, f"A character was torn between tokens: {characters!r}.")
        characters.encode()  # raises for half of a surrogate pair
    if getattr(reader, "vision", False):
        _check_images(reader, text)


def _generate(reader: Reader, messages: Sequence[Message], sampling: Sampling = _SAMPLING) -> tuple[str, Stream]:
    stream = reader.stream(messages, sampling)
    return "".join(stream), stream


def _check_threads(reader: Reader, text: str) -> None:
    other_text, _ = _generate(reader, _RAINBOW_PROMPT)
    outputs: dict[str, str] = {}

    def read_one_piece(messages: Sequence[Message]) -> None:
        with reader.stream(messages, _SAMPLING) as stream:
            next(stream)

    _run_in_threads(
        lambda: outputs.update(count=_generate(reader, _COUNT_PROMPT)[0]),
        lambda: outputs.update(rainbow=_generate(reader, _RAINBOW_PROMPT)[0]),
        lambda: outputs.update(tokens=str(reader.count_tokens(_RAINBOW_PROMPT))),
        lambda: read_one_piece(_RAINBOW_PROMPT),
        lambda: read_one_piece(_COUNT_PROMPT),
    )
    expected = {"count": text, "rainbow": other_text, "tokens": str(reader.count_tokens(_RAINBOW_PROMPT))}
    require(outputs == expected, f"Concurrent requests gave {outputs}, single requests {expected}.")


def _check_images(reader: Reader, text: str) -> None:
    """Images count, change no request for text, and are refused where they cannot be used."""
    (prompt,) = _COUNT_PROMPT
    with_image = (Message("user", ("Describe this image: ", _IMAGE, prompt.text)),)
    without_image = (Message("user", f"Describe this image: {prompt.text}"),)
    described, stream = _generate(reader, with_image)
    counted, used, plain = (
        reader.count_tokens(with_image),
        stream.usage.prompt_tokens,
        reader.count_tokens(without_image),
    )
    valid = counted == used if getattr(reader, "counts_exactly", True) else counted >= used
    require(valid, f"count_tokens returns {counted} for a prompt with an image, but its usage is {used}.")
    require(counted > plain, f"A prompt has {counted} tokens with an image, and {plain} without it.")
    again, _ = _generate(reader, with_image)
    require(again == described, f"At temperature 0 the same image gave {described!r}, then {again!r}.")
    outputs: dict[str, str] = {}
    _run_in_threads(
        lambda: outputs.update(count=_generate(reader, _COUNT_PROMPT)[0]),
        lambda: outputs.update(image=_generate(reader, with_image)[0]),
    )
    expected = {"count": text, "image": described}
    require(outputs == expected, f"Text next to an image gave {outputs}, single requests {expected}.")
    unusable = {
        "an image of the system": (Message("system", ("", _IMAGE)), *_COUNT_PROMPT),
        "a damaged image": (Message("user", (ImagePart(b"no image", "image/png"), "What is it?")),),
    }
    for name, messages in unusable.items():
        refused = False
        try:
            reader.stream(messages, _SAMPLING)
        except UnsupportedError:
            refused = True
        require(refused, f"stream() must raise UnsupportedError at once for {name}.")


def _run_in_threads(*jobs: Callable[[], object]) -> None:
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
        require(not thread.is_alive(), f"The reader is stuck: no answer within {_SECONDS:.0f} seconds.")
