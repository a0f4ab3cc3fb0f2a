# The image of the serve environment: vLLM, for evaluation and for the replicas. `make images` builds it.
#
# The packages come from where pip finds them on the building machine: local wheels through the build context `wheels`,
# addresses and certificates through secrets. Neither stays in a layer, nor does uv, which installs them.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Empty, unless the build is given a context of this name.
FROM scratch AS wheels

# All that the packages depend on: a change of anything else leaves their layer alone.
FROM scratch AS lists
COPY infra/setup/environments.py infra/setup/pip_settings.py /infra/setup/
COPY infra/requirements/serve.txt infra/requirements/serve-cuda.txt /infra/requirements/
COPY infra/requirements/vllm-alias/pyproject.toml /infra/requirements/vllm-alias/

FROM ${BASE_IMAGE}
RUN groupadd --gid 10001 slipway \
    && useradd --uid 10001 --gid slipway --no-create-home --home-dir /tmp --shell /usr/sbin/nologin slipway \
    && install -d -o slipway -g slipway /var/lib/slipway

# vLLM's kernels want libnuma; every other library comes with its wheel.
RUN ldconfig -p | grep -q libnuma.so.1 \
    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*; }

# Compiled to bytecode here, since a container's file system is read-only. Killed and run again, it starts anew.
ARG VARIANT=cpu
RUN --mount=type=bind,from=lists,target=/build,rw \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,id=slipway,target=/cache,sharing=locked \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_cert --mount=type=secret,id=pip_client_cert \
    HOME=/cache TMPDIR=/cache PIP_CONFIG_FILE=/run/secrets/pip_conf SLIPWAY_VENVS=/cache \
    UV_CACHE_DIR=/cache/uv-cache UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never \
    python3 /build/infra/setup/environments.py --only serve --variant "$VARIANT" --place /opt/venv

# Whatever user a container is given: its home is the one folder that it may write to, and it has a name.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/slipway:/opt/slipway/plugins SLIPWAY_HOME=/var/lib/slipway \
    HOME=/tmp USER=slipway LOGNAME=slipway LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/slipway
COPY . .
ARG CODE_VERSION=""
RUN echo "$CODE_VERSION" >CODE_VERSION && chmod -R a+rX . && python -m compileall -q .

ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="slipway/serve" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE" \
      slipway.variant="$VARIANT"
USER slipway
CMD ["python", "-m", "pipeline", "--help"]
