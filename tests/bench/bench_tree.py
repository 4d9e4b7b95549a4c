"""Compare sampling a tree with sampling its leaves separately: `python -m tests.bench.bench_tree [repeats]`.

**Work.** The `tiny` preset with random weights, on questions of the built-in task. At temperature 2 samples rarely
coincide; the engine computes equal samples once, which would distort the comparison. The end-of-text token is disabled,
so responses have 96 tokens. A 6-6-6 tree with segments of 32 tokens, against 216 separate responses to the same
questions from the same engine.

**Expected.** The tree samples a segment once where the leaves sample it 36, 6 or 1 times. Its time falls in proportion
to its tokens: the two ratios agree within 20 %. It samples as many tokens as its nodes hold and prefills prompts once.

**Clock.** CPU seconds of this process, one thread; the two alternate; medians over the repeats.
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
from stages.sampling.protocol import SamplingParams, Usage, ignore_tokens
from stages.tasks import open_task

QUESTIONS, BRANCHES, SEGMENT_TOKENS, MAX_TOKENS = 16, (6, 6, 6), 32, 96


def main(repeats: int = 5) -> float:
    """Print the figures; return the ratio of times divided by the ratio of tokens."""
    torch.set_num_threads(1)
    model, tokenizer = make_model("tiny", 0)
    engine = TransformersSampler(model.eval(), tokenizer)
    engine.is_end[:] = False
    task = open_task("arithmetic", None, ())
    questions = list(task.questions("train")[:QUESTIONS])
    prompts = [np.frombuffer(question.prompt.encode(), np.uint8).astype(np.int32) for question in questions]

    def tree(repeat: int) -> tuple[list[TreeNode], Usage]:
        return sample_trees(questions, prompts, BRANCHES, SEGMENT_TOKENS, sampling(repeat), ignore_tokens)

    def leaves(repeat: int) -> Usage:
        return respond(questions, prompts, sampling(repeat), ignore_tokens, num_generations=int(np.prod(BRANCHES)))[1]

    def sampling(repeat: int) -> Sampling:
        return Sampling(engine, tokenizer, task, SamplingParams(temperature=2.0), MAX_TOKENS, (repeat,))

    seconds: dict[str, list[float]] = {"tree": [], "leaves": []}
    tokens = {"tree": 0, "leaves": 0}
    for repeat in range(repeats):
        start = time.process_time()
        nodes, tree_usage = tree(repeat)
        middle = time.process_time()
        leaf_usage = leaves(repeat)
        seconds["tree"].append(middle - start)
        seconds["leaves"].append(time.process_time() - middle)
        tokens["tree"] += tree_usage.sampled
        tokens["leaves"] += leaf_usage.sampled
        assert tree_usage.sampled == sum(len(node.sample.token_ids) for node in nodes)
        assert tree_usage.prefilled == leaf_usage.prefilled == leaf_usage.distinct_prefix_tokens
    time_ratio = median(seconds["tree"]) / median(seconds["leaves"])
    token_ratio = tokens["tree"] / tokens["leaves"]
    for name, found in seconds.items():
        print(f"  {name:<7}{tokens[name] / repeats:>9,.0f} tokens  {median(found):6.2f} s")
    print(
        f"  a 6-6-6 tree takes {time_ratio:.3f} of the time and {token_ratio:.3f} of the tokens of its leaves: ", end=""
    )
    print(f"{time_ratio / token_ratio:.2f} (expected 0.80 to 1.20); its prompts are prefilled once")
    return time_ratio / token_ratio


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
