# petseg as a container: `docker build -t petseg .`, then `docker run -p 8000:8000 petseg`.
# The package index's torch carries CUDA. For a smaller CPU image, name an index with CPU builds:
# `docker build --build-arg PIP_EXTRA_INDEX_URL=... -t petseg .`
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY models models
COPY service service
COPY training training
RUN python -m venv /opt/petseg && /opt/petseg/bin/pip install --constraint constraints.txt '.[openvino]'

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --no-create-home petseg
COPY --from=build /opt/petseg /opt/petseg
USER 10001
ENV PATH=/opt/petseg/bin:$PATH PETSEG_HOST=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["petseg", "serve"]
