# Images for pools and endpoints: --target cpu or gpu. One image trains and serves: `treadle job ...`, `treadle serve ...`.
#
#   docker build -f docker/pool.Dockerfile --target gpu -t REGISTRY/treadle-gpu:0.1.0 .
#
# PYTHON is pinned by its version; pin it by digest where you build: --build-arg PYTHON=python@sha256:...
# TORCH_INDEX (cpu): PyTorch's own index of wheels without CUDA; without it the image has no torch, and trains trees.
# For jobs with several workers: --build-arg EXTRAS=stages,serve,s3,ray --build-arg PACKAGES=wget (KubeRay's probes call it).
ARG PYTHON=python:3.12.11-slim-bookworm

FROM ${PYTHON} AS base
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title=treadle org.opencontainers.image.version=${VERSION}
# A number, as Kubernetes can't tell by a name that a user is not root; group 0, as OpenShift gives a user of its own.
RUN useradd --uid 50000 --gid 0 --create-home treadle \
  && install -d -o treadle -g 0 -m 775 /opt/treadle /opt/treadle/loops /opt/treadle/store
ARG PACKAGES=
RUN if [ -n "$PACKAGES" ]; then apt-get update && apt-get install -y --no-install-recommends $PACKAGES \
  && rm -rf /var/lib/apt/lists/*; fi
ENV PATH=/opt/treadle/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /opt/treadle

FROM base AS source
COPY constraints.txt pyproject.toml README.md LICENSE src/
COPY core src/core
COPY providers src/providers
RUN python -m venv venv

FROM source AS build-cpu
ARG EXTRAS=stages,serve,s3
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then \
    pip install --no-cache-dir -c src/constraints.txt --index-url "$TORCH_INDEX" torch && EXTRAS=$EXTRAS,torch; fi \
  && pip install --no-cache-dir -c src/constraints.txt "treadle[$EXTRAS] @ file:///opt/treadle/src" \
  && pip check

FROM source AS build-gpu
ARG EXTRAS=stages,serve,s3,torch
# PyTorch's default wheels bring CUDA's libraries; the driver comes from the node.
RUN pip install --no-cache-dir -c src/constraints.txt "treadle[$EXTRAS] @ file:///opt/treadle/src" \
  && pip check

FROM base AS cpu
COPY --from=build-cpu /opt/treadle/venv venv
USER 50000:0
CMD ["treadle", "--help"]

FROM base AS gpu
COPY --from=build-gpu /opt/treadle/venv venv
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 50000:0
CMD ["treadle", "--help"]
