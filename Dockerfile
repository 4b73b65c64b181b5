# Two targets: `serve` (the default, the last one) predicts and serves without torch; `train` has everything.
#
#   docker build -t imgclf .
#   docker run --rm -p 8000:8000 --read-only --tmpfs /tmp -v "$PWD/model":/work/model:ro imgclf
#   docker build -t imgclf-train --target train .
#   mkdir -p data model results      # else Docker makes them, for root, and user 1000 can't write
#   docker run --rm -v "$PWD/data":/work/data -v "$PWD/model":/work/model -v "$PWD/results":/work/results imgclf-train
#
# Behind a mirror: --build-arg BASE_IMAGE=..., PIP_INDEX_URL=..., PIP_EXTRA_INDEX_URL=..., PIP_TRUSTED_HOST=...
# An index that wants a password: --secret id=pip_conf,src=pip.conf. A certificate authority of your own:
# --secret id=pip_ca,src=ca.pem --build-arg PIP_CERT=/run/secrets/pip_ca. Secrets leave no trace in a layer.
# torch for the CPU only, without 4 GB of CUDA libraries: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG BASE_IMAGE=python:3.11-slim

# Nothing of the build stages reaches an image but /venv, so neither do the index arguments.
FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
# As ENV, for buildah does not hand arguments on to stages that build on this one. pip ignores empty values.
ENV PIP_INDEX_URL=$PIP_INDEX_URL PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL PIP_FIND_LINKS=$PIP_FIND_LINKS \
    PIP_TRUSTED_HOST=$PIP_TRUSTED_HOST PIP_CERT=$PIP_CERT PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
WORKDIR /src
RUN python3 -m venv /venv
COPY settings.ini constraints.txt ./
# The dependencies come before the sources, so that a change of the sources does not install them again.
RUN python -c "from configparser import ConfigParser as C; p = C(delimiters=['='], interpolation=None); p.read('settings.ini'); [open(k, 'w').write(p['DEFAULT'][k]) for k in ('requirements', 'serve_requirements')]"

FROM build AS wheel
COPY . .
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca \
    pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM build AS train-build
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca \
    pip install --no-cache-dir --no-compile -c constraints.txt -r requirements
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir --no-compile --no-deps --no-index /dist/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /venv/lib

FROM build AS serve-build
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca \
    pip install --no-cache-dir --no-compile -c constraints.txt -r serve_requirements
COPY --from=wheel /dist /dist
# Serving needs no tests of pandas and numpy, no installer, and nothing that reports to Intel.
# The compiled files trust their sources unread: nobody can change either on a read-only file system.
RUN pip install --no-cache-dir --no-compile --no-deps --no-index /dist/*.whl \
    && rm -rf /venv/lib/python3*/site-packages/pandas/tests \
    && pip uninstall --yes openvino-telemetry setuptools pip \
    && python -m compileall -q --invalidation-mode unchecked-hash /venv/lib

FROM ${BASE_IMAGE} AS base
# By number, as Kubernetes wants to see that this is not root; any other number works too, for HOME is /tmp.
RUN useradd --uid 1000 --non-unique --user-group --no-create-home --home-dir /tmp imgclf \
    && install -d -o 1000 -g 1000 /work /work/data /work/model /work/results \
    && install -d -m 1777 /cache
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp GRADIO_TEMP_DIR=/tmp/gradio MPLCONFIGDIR=/tmp/matplotlib GRADIO_ANALYTICS_ENABLED=False
WORKDIR /work
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="imgclf_nb" \
      org.opencontainers.image.source="https://github.com/imgclf/imgclf_nb" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["imgclf"]

FROM base AS train
COPY --from=train-build /venv /venv
LABEL org.opencontainers.image.description="Train an image classifier on your own photographs"
# Weights that a training downloads: keep them with a volume on /cache.
ENV HF_HOME=/cache/huggingface TORCH_HOME=/cache/torch
VOLUME ["/work/data", "/work/model", "/work/results"]
USER 1000:1000
CMD ["run"]

FROM base AS serve
COPY --from=serve-build /venv /venv
LABEL org.opencontainers.image.description="Serve an image classifier on a CPU: web page and HTTP API on port 8000"
ENV IMGCLF_HOST=0.0.0.0 HF_HUB_OFFLINE=1 HF_HOME=/tmp/huggingface
EXPOSE 8000
USER 1000:1000
# Change the port with IMGCLF_PORT, not with --port: this check reads it too.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection as C; c = C({'::': '::1'}.get(os.environ.get('IMGCLF_HOST'), '127.0.0.1'), int(p) if (p := os.environ.get('IMGCLF_PORT') or '8000').isdigit() else 8000, timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["serve"]
