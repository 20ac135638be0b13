# The image for Trainium and Inferentia: AWS's own Neuron image, and treadle beside what it holds.
#
#   docker build -f docker/neuron.Dockerfile --build-arg BASE=IMAGE@sha256:... -t REGISTRY/treadle-neuron:0.1.0 .
#
# BASE has no default: AWS publishes images for PyTorch with the Neuron SDK for training and for inference, and which of
# them fits is a matter of the machine (trn1 and inf2, or trn2 and newer). Its Python must be 3.11 or newer.
# Nothing of the Neuron SDK is installed or changed here: the build fails where anything would change it.
ARG BASE
FROM ${BASE} AS neuron
ARG VERSION=0.1.0
ARG EXTRAS=stages,serve,s3
LABEL org.opencontainers.image.title=treadle org.opencontainers.image.version=${VERSION}
USER root
RUN useradd --uid 50000 --gid 0 --create-home treadle \
  && install -d -o treadle -g 0 -m 775 /opt/treadle /opt/treadle/loops /opt/treadle/store
ENV PYTHONUNBUFFERED=1
WORKDIR /opt/treadle
COPY constraints.txt pyproject.toml README.md LICENSE src/
COPY core src/core
COPY providers src/providers
RUN python -c "import sys; assert sys.version_info >= (3, 11), sys.version" \
  && python -m pip freeze | grep -iE '^(torch|neuron|libneuron|aws-neuron|nki)' | sort > neuron.txt \
  && test -s neuron.txt \
  && sed -E '/^(torch|nvidia|triton)/d' src/constraints.txt > limits.txt \
  && python -m pip install --no-cache-dir -c limits.txt "treadle[$EXTRAS] @ file:///opt/treadle/src" safetensors \
  && python -m pip freeze | grep -iE '^(torch|neuron|libneuron|aws-neuron|nki)' | sort | diff neuron.txt - \
  && python -m pip check \
  && rm -rf src limits.txt
USER 50000:0
# AWS's images start a server of their own.
ENTRYPOINT []
CMD ["treadle", "--help"]
