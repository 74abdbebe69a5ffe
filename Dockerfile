# petseg as a container. deploy/README.md says how to run it, with which mounts.
#
#   CPU:  docker build --build-arg TORCH_INDEX_URL=<index of CPU builds> -t petseg .
#   GPU:  docker build --build-arg EXTRAS= -t petseg:cuda .
#
# Without TORCH_INDEX_URL torch comes from pip's own index: on Linux that build carries CUDA, runs on CPUs too, and makes
# the image some gigabytes larger. NVIDIA's driver comes from the host (--gpus all); no CUDA base image is needed.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX_URL=""
# Extras of pyproject.toml, with blanks between them. OpenVINO runs the networks where there is no GPU.
ARG EXTRAS="openvino"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/petseg/bin:$PATH
WORKDIR /src
# For our own module in C; without a compiler petseg draws its masks with numpy.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/petseg
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
        PIP_INDEX_URL="$TORCH_INDEX_URL" pip install --constraint constraints.txt torch torchvision; \
    fi
# What petseg needs, before petseg itself: a change of our code does not install torch again.
COPY pyproject.toml deploy/list_requirements.py ./
RUN python list_requirements.py pyproject.toml $EXTRAS > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md ./
COPY models models
COPY service service
COPY training training
# Gone again: what builds or compiles. Triton, which torch.compile alone asks for, would need a C compiler as well.
RUN pip install --no-deps . \
    && pip uninstall --yes triton setuptools pip \
    && rm -rf /opt/petseg/lib/python*/site-packages/torch/include \
              /opt/petseg/lib/python*/site-packages/torch/share/cmake \
    && find /opt/petseg -name '*.a' -delete

FROM python:${PYTHON}-slim
# The image installs nothing once it is built: pip goes. Folders for volumes belong to the user that writes them.
RUN pip uninstall --yes pip setuptools wheel \
    && useradd --system --uid 10001 --no-create-home --home-dir /nonexistent petseg \
    && install --directory --owner=10001 /backbones /var/cache/petseg
COPY --from=build /opt/petseg /opt/petseg
# Converted networks are kept in XDG_CACHE_HOME/petseg; large frozen backbones in /backbones, those that ship are inside.
ENV PATH=/opt/petseg/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PETSEG_HOST=0.0.0.0 \
    PETSEG_BACKBONE_FOLDER=/backbones \
    HF_HOME=/backbones/huggingface \
    XDG_CACHE_HOME=/var/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --start-interval=2s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ.get(\"PETSEG_PORT\", \"8000\")}/readyz', timeout=2)"]
ENTRYPOINT ["petseg", "serve"]
