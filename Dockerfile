# syntax=docker/dockerfile:1
# Two images in one file, with the versions in constraints/. Build them in the repository:
#   docker build --target cpu -t redi:cpu .
#   docker build --target cuda -t redi:cuda .
# Run a program on the current folder, which also receives the results:
#   docker run --rm -v "$PWD:/runs" redi:cpu redi-run --gin_file=digits.gin --run_dir=runs/quickstart
#   docker run --rm -v "$PWD:/runs" --gpus all --shm-size=8g redi:cuda redi-run --gin_file=images.gin ...
# If your user id is not 1000, add --user "$(id -u):$(id -g)".
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-trixie AS base
# torch.compile needs a C++ compiler. Debian removes old versions of packages, so this one has no pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
WORKDIR /opt/redi
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY gin gin
COPY experiments/curves experiments/curves
COPY redi redi
RUN useradd --create-home --uid 1000 redi \
    && install --directory --owner=redi /runs
ENV REDI_CACHE=/runs/.cache/redi

# The torch wheels contain the CUDA libraries; the host provides the driver and the NVIDIA container toolkit.
FROM base AS cuda
RUN --mount=type=cache,target=/root/.cache/pip \
    version=$(python -c 'import sys; print("%d%d" % sys.version_info[:2])') \
    && python -m pip install ".[gpu,huggingface,stream]" -c "constraints/py${version}-torch211.txt"
USER 1000
WORKDIR /runs
CMD ["redi"]

# PyTorch's own index has builds without CUDA. `==2.11.0` in the constraints accepts their version, 2.11.0+cpu.
FROM base AS cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    version=$(python -c 'import sys; print("%d%d" % sys.version_info[:2])') \
    && python -m pip install ".[huggingface,stream]" -c "constraints/py${version}-torch211.txt" \
        --extra-index-url https://download.pytorch.org/whl/cpu
USER 1000
WORKDIR /runs
CMD ["redi"]
