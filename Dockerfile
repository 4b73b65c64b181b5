# Two targets: `serve` (the default) predicts without torch; `train` has everything.
#   docker build -t imgclf .                  docker run --rm -v "$PWD":/work imgclf predict photo.jpg
#   docker build -t imgclf-train --target train .
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY . .
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir build && /venv/bin/python -m build --outdir /dist

FROM ${BASE_IMAGE} AS base
RUN useradd --create-home --uid 1000 imgclf && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /work
COPY --from=build /dist /dist
COPY --from=build /src/constraints.txt /src/settings.ini /dist/
ENTRYPOINT ["imgclf"]
CMD ["--help"]

FROM base AS train
RUN pip install --no-cache-dir -c /dist/constraints.txt /dist/*.whl
USER imgclf

FROM base AS serve
RUN python3 -c "from configparser import ConfigParser as C; p = C(delimiters=['='], interpolation=None); p.read('/dist/settings.ini'); print(p['DEFAULT']['serve_requirements'])" > /dist/serve.txt \
    && pip install --no-cache-dir -c /dist/constraints.txt -r /dist/serve.txt \
    && pip install --no-cache-dir --no-deps /dist/*.whl
USER imgclf
