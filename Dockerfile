# The scoring server alone: no scikit-learn, no training, no sample data.
#   docker build -t tidemark .
# The server starts only if it knows who may call: callers with tokens (docker run --rm tidemark tidemark tokens new NAME --scopes score)
#   docker run -p 50051:50051 -v "$PWD/build/registry:/registry:ro" -e TIDEMARK_REDIS=redis://host:6379 \
#     -v "$PWD/callers:/callers:ro" -e TIDEMARK_CALLERS=/callers/callers.toml tidemark
# or anyone who can reach the port; then publish it only where callers are trusted, for example on this machine:
#   docker run -p 127.0.0.1:50051:50051 -v "$PWD/build/registry:/registry:ro" -e TIDEMARK_REDIS=redis://host:6379 \
#     -e TIDEMARK_ALLOW_ANYONE=true tidemark

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements/build.lock requirements/server.lock requirements/
RUN python -m venv /build \
    && /build/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.lock \
    && /build/bin/uv venv --python /usr/local/bin/python /opt/tidemark \
    && /build/bin/uv pip install --no-cache --python /opt/tidemark/bin/python --require-hashes --requirements requirements/server.lock
COPY . .
RUN /build/bin/uv build --wheel --no-build-isolation --python /build/bin/python --out-dir /dist client \
    && /build/bin/uv build --wheel --no-build-isolation --python /build/bin/python --out-dir /dist . \
    && /build/bin/uv pip install --no-cache --python /opt/tidemark/bin/python --no-deps --compile-bytecode /dist/*.whl

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home tidemark
COPY --from=build /opt/tidemark /opt/tidemark
# Other containers must reach it, so it listens on all addresses.
ENV PATH=/opt/tidemark/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TIDEMARK_HOST=0.0.0.0 \
    TIDEMARK_PORT=50051 \
    TIDEMARK_REGISTRY=/registry
# An empty folder: nothing is found in the current folder by accident.
WORKDIR /var/empty/tidemark
USER 10001
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["tidemark", "healthcheck"]
STOPSIGNAL SIGTERM
CMD ["tidemark", "serve"]
