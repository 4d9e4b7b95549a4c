"""Examples at the end of `--help`, for each command and each of its forms; "" is `spo` itself."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "spo sft --task arithmetic --preset tiny --steps 1500 --out runs/x/start",
        "spo rollout -m runs/x/start --task arithmetic --num-questions 64 \\\n"
        "    --max-tokens 64 --out runs/x/trajectories",
        "spo segment runs/x/trajectories --out runs/x/cutpoints",
        "spo estimate runs/x/cutpoints --out runs/x/advantages",
        "spo train runs/x/advantages --out runs/x/checkpoint",
    ),
    "sft": (
        "spo sft --task arithmetic --preset tiny --steps 1500 --out runs/x/start",
        "spo sft -m MODEL --task gsm8k --data hub --lora-r 16 --out runs/x/start",
    ),
    "rollout": (
        "spo rollout -m runs/x/start --task arithmetic --num-questions 64 \\\n"
        "    --max-tokens 64 --out runs/x/trajectories",
        "spo rollout -m MODEL --task gsm8k --data hub --tree 6-6-6 --engine vllm \\\n    --out runs/x/trees",
        "spo rollout -m MODEL --task custom --data data --chat-template \\\n"
        "    --task-arg question=problem reward=rewards:score --out runs/x/own",
    ),
    "import": (
        "spo import rollouts/12.jsonl -m MODEL --out runs/x/trajectories",
        "spo import completions.parquet -m MODEL --column reward=accuracy_reward \\\n    --out runs/x/trajectories",
    ),
    "segment": (
        "spo segment runs/x/trajectories --interval 4 --out runs/x/cutpoints",
        "spo segment runs/x/trajectories --partition delimiter --out runs/x/lines",
        "spo segment runs/x/trajectories --partition my_package.cuts:sentences \\\n    --out runs/x/sentences",
    ),
    "estimate": (
        "spo estimate runs/x/cutpoints --rollouts 9 --out runs/x/advantages",
        "spo estimate runs/x/cutpoints --rollouts 4..32 --budget 20000 \\\n    --out runs/x/advantages",
        "spo estimate runs/x/cutpoints --estimator grpo --out runs/x/advantages",
    ),
    "train": (
        "spo train runs/x/advantages --learning-rate 1e-6 --out runs/x/checkpoint",
        "spo train runs/x/000/advantages runs/x/001/advantages --replay 8 \\\n    --out runs/x/001/checkpoint",
        "torchrun --nproc-per-node 8 -m spo_cli train runs/x/advantages \\\n    --zero-stage 2 --out runs/x/checkpoint",
    ),
    "eval": (
        "spo eval -m runs/x/checkpoint --task arithmetic --out eval/x",
        "spo eval -m MODEL --task math500 aime24 --data hub --num-generations 4 \\\n"
        "    --temperature 0.6 --max-tokens 2048 4096 --out eval/x",
        "spo eval --compare eval/base eval/x",
    ),
    "eval --compare": ("spo eval --compare eval/base eval/x", "spo eval --compare eval/base eval/x --format json"),
    "eval --regrade": (
        "spo eval --regrade eval/x --out eval/x-again",
        "spo eval --regrade eval/x --max-tokens 512 1024 --out eval/x-short",
    ),
    "eval --table": (
        "spo eval --table eval/x",
        "spo eval --table SPO=eval/x base=eval/base --format latex",
    ),
    "run": (
        "spo run recipe.toml",
        "spo run recipe.toml --iterations 4 --train.learning-rate 2e-6 --out runs/y",
        "spo run recipe.toml --set rollout.num_questions=128 --report-to tensorboard",
    ),
    "plan": (
        "spo plan recipe.toml --like runs/trial",
        "spo plan recipe.toml --response-tokens 400 --sampling-rate 5000 \\\n    --training-rate 20000",
    ),
    "slurm": (
        "spo slurm recipe.toml --dry-run",
        "spo slurm recipe.toml --submit",
        "spo slurm recipe.toml --submit --only-missing",
    ),
    "prune": ("spo prune recipe.toml", "spo prune recipe.toml --keep-checkpoints 2"),
    "status": ("spo status runs/x", "spo status runs/x --json"),
    "grade": (
        "spo grade responses.jsonl --grader maths",
        "spo grade answers.csv --response-column output --answer-column gold \\\n    --explain --rows 5",
        "spo grade runs/x/trajectories --out runs/x/verdicts.parquet",
    ),
    "show": (
        "spo show runs/x",
        "spo show runs/x/000/advantages --row 3",
        "spo show runs/x/000/advantages --where 'advantage<-0.5' --sample 3",
        "spo show --schema",
    ),
    "report": (
        "spo report runs/x",
        "spo report runs/x runs/y --out compare.html --json",
        "spo report runs/x/000/advantages --max-trajectories 500",
    ),
    "audit": (
        "spo audit runs/x/000/advantages",
        "spo audit runs/x/000/advantages --rollouts 512 --figure audit.pdf",
    ),
    "plot": (
        "spo plot runs/x runs/y --out curves.pdf",
        "spo plot runs/x-0,runs/x-1,runs/x-2 runs/y --x sampled --out seeds.svg",
    ),
    "doctor": ("spo doctor", "spo doctor --model runs/quickstart/start/checkpoint --json"),
}
