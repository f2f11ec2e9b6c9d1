"""What is asked: real prompts, and conversations of a given length made of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

from steerlm.files import load_conversations
from steerlm.sources.bundled import SAMPLE, held_out_prompts

Message = dict[str, str]


def prompts(count: int, skip: int = 0) -> list[str]:
    """Different prompts of everyday kinds; beyond those of the sample they are numbered."""
    found = held_out_prompts()
    number = range(skip, skip + count)
    return [found[i % len(found)] if i < len(found) else f"({i}) {found[i % len(found)]}" for i in number]


def conversation(length: int, count: Callable[[list[Message]], int], topic: int = 0) -> list[Message]:
    """A conversation of about, and at most, `length` tokens by `count`, ending with a prompt. `topic` makes another."""
    exchanges = cycle(_exchanges())
    for _ in range(topic):
        next(exchanges)
    messages: list[Message] = []
    last = {"role": "user", "content": prompts(1, topic)[0]}
    while True:
        prompt, answer = next(exchanges)
        longer = [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        if count([*longer, last]) > length:
            return [*messages, last]
        messages = longer


def _exchanges() -> list[tuple[str, str]]:
    found = []
    for item in load_conversations(SAMPLE):
        for message in item.messages:
            if message.role == "assistant" and message.parent is not None:
                found.append((item.messages[message.parent].text, message.text))
    return found
