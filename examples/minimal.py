"""The whole method on one page: rate, learn to rate, annotate, learn to answer as asked, steer.

    python examples/minimal.py [RATED.jsonl] [OUT_DIRECTORY]

Without arguments it takes the sample that comes with steerlm.
"""

import sys
from contextlib import closing
from pathlib import Path

from steerlm.annotation import AnnotateSettings, annotate
from steerlm.engines import Sampling, TorchEngine, batch, complete
from steerlm.sources.bundled import SAMPLE
from steerlm.steering import asked_values, prompt_ids
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.run import train_attribute_model, train_policy


def main(rated: Path, out: Path, base: str = "smollm2", max_steps: int | None = None) -> dict[int, str]:
    """Train both models and answer one prompt at every level of verbosity."""
    # 1. Learn to rate: a regression of human ratings, read at the end of every response. On little data its closed-form
    #    start is the best of it, hence no steps of fine-tuning.
    judge = train_attribute_model(AttributeSettings(data=[rated], base=base, out=out / "attribute-model", max_steps=0))
    # 2. Annotate: give every response values for all attributes.
    annotate(rated, out / "annotated.jsonl", judge, AnnotateSettings())
    # 3. Learn to answer as asked: each response is trained under a label line with its values, and to be likelier
    #    under these than under those of another answer.
    policy = train_policy(
        PolicySettings(
            data=[out / "annotated.jsonl"],
            base=base,
            out=out / "policy",
            epochs=1,
            max_steps=max_steps,
            batch_conversations=1,
            learning_rate=4e-4,
            contrast=0.5,
        )
    )
    # 4. Steer: the same prompt, one attribute at each of its levels.
    levels = policy.schema["verbosity"].levels
    prompts = [
        prompt_ids(policy, "How does a bicycle stay upright?", asked_values(policy.schema, {"verbosity": level}))
        for level in levels
    ]
    with closing(TorchEngine(policy)) as engine:
        answers = complete(engine, batch(prompts, Sampling(max_tokens=200)))
    return {level: answer.text for level, answer in zip(levels, answers, strict=True)}


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:3]]
    defaults = [SAMPLE, Path("runs/minimal")]
    for level, text in main(*[*arguments, *defaults[len(arguments) :]]).items():
        print(f"verbosity {level} ({len(text)} characters)\n{text}\n")
