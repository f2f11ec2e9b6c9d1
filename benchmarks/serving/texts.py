"""What is asked: real prompts, and conversations of a given length made of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import cycle, islice

from steerlm.files import load_conversations
from steerlm.sources.bundled import SAMPLE, held_out_prompts

Message = dict[str, str]


def prompts(count: int, skip: int = 0) -> list[str]:
    """Different prompts of everyday kinds; beyond those of the sample they are numbered."""
    found = held_out_prompts()
    number = range(skip, skip + count)
    return [found[i % len(found)] if i < len(found) else f"({i}) {found[i % len(found)]}" for i in number]


def conversation(length: int, count: Callable[[list[Message]], int], topic: int = 0) -> list[Message]:
    """A conversation of `length` tokens by `count`, ending with a prompt. `topic` makes another.

    Its last answer is one that is cut, or goes on into others, where that fills it. A length that no cut gives is
    missed from below by a token or two.
    """
    exchanges = islice(cycle(_exchanges()), topic, None)
    messages: list[Message] = []
    last = {"role": "user", "content": prompts(1, topic)[0]}
    for prompt, answer in exchanges:
        longer = [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        if count([*longer, last]) > length:
            break
        messages = longer
    *before, said = messages or [*longer[:1], {"role": "assistant", "content": ""}]
    filling = " ".join([said["content"], answer, *(more for _, more in islice(exchanges, 3))])

    def cut(size: int) -> list[Message]:
        return [*before, {"role": "assistant", "content": filling[:size]}, last]

    sizes = range(len(filling) + 1)
    return cut(bisect_right(sizes, length, lo=1, key=lambda size: count(cut(size))) - 1)


def _exchanges() -> list[tuple[str, str]]:
    found = []
    for item in load_conversations(SAMPLE):
        for message in item.messages:
            if message.role == "assistant" and message.parent is not None:
                found.append((item.messages[message.parent].text, message.text))
    return found
