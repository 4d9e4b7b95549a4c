"""A tree beside its leaves drawn one by one: `python -m tests.bench.bench_tree [repeats]`.

**Work.** The `tiny` preset with random weights at temperature 2, so that next to nothing is drawn twice (what samples
have in common costs the engine nothing, and would flatter either side), on questions of the built-in task, with the
end of the text made rare: responses run to 96 tokens. A tree of 6-6-6 in stretches of 32 against 216 separate
responses to the same questions, by the same engine.

**Expected.** The tree draws a stretch once where the leaves draw it 36, 6 or 1 times. Its time falls as its tokens do:
the two ratios agree within 20 %. It draws as many tokens as its nodes hold and prefills its prompts once.

**Clock.** CPU seconds of this process, one thread; contestants alternate; medians over the repeats.
"""

from __future__ import annotations

import os
import sys
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from stages.models.presets import make_model
from stages.responses.generation import Sampling, respond
from stages.responses.trees import TreeNode, sample_trees
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.protocol import SamplingParams, Usage
from stages.tasks import open_task

QUESTIONS, BRANCHES, STRETCH, MOST = 16, (6, 6, 6), 32, 96


def nothing(finished: int, tokens: int, /) -> None:
    """Takes no note of progress."""


def main(repeats: int = 5) -> float:
    """Prints the figures; returns the ratio of times over the ratio of tokens."""
    torch.set_num_threads(1)
    model, tokenizer = make_model("tiny", 0)
    engine = TransformersSampler(model.eval(), tokenizer)
    engine.is_end[:] = False
    task = open_task("arithmetic", None, ())
    questions = list(task.questions("train")[:QUESTIONS])
    prompts = [np.frombuffer(question.prompt.encode(), np.uint8).astype(np.int32) for question in questions]

    def tree(repeat: int) -> tuple[list[TreeNode], Usage]:
        return sample_trees(questions, prompts, BRANCHES, STRETCH, sampling(repeat), nothing)

    def leaves(repeat: int) -> Usage:
        return respond(questions, prompts, sampling(repeat), nothing, num_generations=int(np.prod(BRANCHES)))[1]

    def sampling(repeat: int) -> Sampling:
        return Sampling(engine, tokenizer, task, SamplingParams(temperature=2.0), MOST, (repeat,))

    seconds: dict[str, list[float]] = {"tree": [], "leaves": []}
    tokens = {"tree": 0, "leaves": 0}
    for repeat in range(repeats):
        start = time.process_time()
        nodes, of_tree = tree(repeat)
        middle = time.process_time()
        of_leaves = leaves(repeat)
        seconds["tree"].append(middle - start)
        seconds["leaves"].append(time.process_time() - middle)
        tokens["tree"] += of_tree.sampled
        tokens["leaves"] += of_leaves.sampled
        assert of_tree.sampled == sum(len(node.sample.token_ids) for node in nodes)
        assert of_tree.prefilled == of_leaves.prefilled == of_leaves.distinct_prefix_tokens
    times = median(seconds["tree"]) / median(seconds["leaves"])
    drawn = tokens["tree"] / tokens["leaves"]
    for name, found in seconds.items():
        print(f"  {name:<7}{tokens[name] / repeats:>9,.0f} tokens  {median(found):6.2f} s")
    print(f"  a tree of 6-6-6 takes {times:.3f} of the time of its leaves, {drawn:.3f} of their tokens: ", end="")
    print(f"{times / drawn:.2f} (wanted 0.80 to 1.20); its prompts are prefilled once")
    return times / drawn


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
