"""Conversations of the serving benchmark, counted by a policy's own chat template."""

from __future__ import annotations

import pytest

from benchmarks.serving.texts import Message, conversation
from steerlm.sources.bundled import held_out_prompts
from tiny import renderer


@pytest.mark.parametrize("length", [300, 801, 2000])
def test_conversations_have_the_length_that_is_asked_for(length: int) -> None:
    rendering = renderer("chatml", "chatml")
    template = rendering.chat_template("policy")

    def count(messages: list[Message]) -> int:
        return len(
            rendering.tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, return_dict=False
            )
        )

    made = [conversation(length, count, topic) for topic in range(4)]
    for messages, prompt in zip(made, held_out_prompts(), strict=False):
        # Where the text ends within what one token holds, no cut gives the one or two that lack.
        assert length - 2 <= count(messages) <= length
        assert [item["role"] for item in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
        assert messages[-1]["content"] == prompt
    assert len({str(messages) for messages in made}) == 4
