# A thin image around scripts/install.sh, which is what `make install` and the tests run too.
#
#   docker build -t sglang-respec .
#   docker run --gpus all --ipc=host -p 30000:30000 -v MODELS:/models sglang-respec \
#       --host 0.0.0.0 --model-path /models/MODEL --drafter-path /models/DRAFTER
#
# The development image of CUDA, because SGLang compiles some kernels when they are first used.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates g++ git libnuma1 make ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sglang-respec
# First what the installation depends on, so that a change of the code keeps this layer.
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY scripts/install.sh scripts/install.sh
COPY sglang_respec/__init__.py sglang_respec/__init__.py
COPY kernels/respec_kernels/__init__.py kernels/respec_kernels/__init__.py
COPY server/respec_server/__init__.py server/respec_server/__init__.py
RUN scripts/install.sh .venv
ENV PATH=/opt/sglang-respec/.venv/bin:$PATH

COPY . .

EXPOSE 30000
ENTRYPOINT ["respec", "serve"]
CMD ["--demo", "--host", "0.0.0.0"]
