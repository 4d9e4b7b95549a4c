# A CUDA image with every extra that `spo` uses: `docker build -t spo .`, then `docker run --gpus all -v $PWD:/workspace spo rollout …`.
# Its Python steps are the Makefile's (a virtual environment, pinned versions) with the GPU extras added.
# The devel image is needed because DeepSpeed compiles its optimizers with nvcc on first use.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-dev python3-venv git g++ \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/spo PATH=/opt/spo/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv $VIRTUAL_ENV

WORKDIR /opt/src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY spo_cli spo_cli
COPY stages stages
RUN python -m pip install --quiet --constraint constraints.txt '.[vllm,deepspeed,hub,lora,tensorboard,wandb]' && spo --version

COPY examples /opt/src/examples
WORKDIR /workspace
ENTRYPOINT ["spo"]
