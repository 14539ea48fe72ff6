# syntax=docker/dockerfile:1
# The server with a worker for this machine's CPU.
#
#   docker build -t trainhop .
#   docker run -p 127.0.0.1:8642:8642 -v trainhop:/data trainhop
#
# The usual Linux wheel of torch is built for CUDA and adds gigabytes that a CPU never uses. Give PyTorch's own index of
# CPU builds as --build-arg TORCH_INDEX=... for a small image.

FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /app
# A layer of its own: it changes with the pinned version only.
RUN /app/bin/pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0
WORKDIR /src
COPY .ci/server.lock .ci/server.lock
RUN /app/bin/pip install --require-hashes -r .ci/server.lock
COPY . .
RUN /app/bin/pip install '.[server,drive,kaggle,postgres,train]'

FROM python:3.12-slim-bookworm
# bitsandbytes and torch use OpenMP.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --home-dir /home/trainhop trainhop \
    && install -d -o trainhop -g trainhop -m 0700 /data
COPY --from=build /app /app
COPY examples /usr/share/trainhop/examples
ENV PATH="/app/bin:$PATH" \
    HF_HOME=/data/huggingface \
    PYTHONUNBUFFERED=1
USER trainhop
WORKDIR /data
VOLUME /data
EXPOSE 8642
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8642/healthz', timeout=4)"]
CMD ["trainhop", "up", "--host", "0.0.0.0", "--port", "8642", "--data-dir", "/data"]
