# The command mtlkit on a CPU, for `mtlkit predict` above all.
#
#   docker build -t mtlkit .                        predicts with networks exported to ONNX; without PyTorch
#   docker build -t mtlkit:torch --target torch .   trains, too, and predicts with the folders of runs
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" mtlkit predict net.onnx scans --out found
#
# On x86-64, PyTorch's default build has CUDA and is 5 GB; --build-arg PIP_EXTRA_INDEX_URL=… names the index of its CPU
# builds, which pytorch.org/get-started lists.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++
WORKDIR /src
COPY . .
RUN MTLKIT_CUDA=off pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS base
ENV HOME=/tmp PYTHONUNBUFFERED=1
COPY --from=build /wheels /wheels
WORKDIR /work
ENTRYPOINT ["mtlkit"]
CMD ["--help"]

FROM base AS torch
ARG PIP_EXTRA_INDEX_URL=
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[train,predict,dicom]"
USER 1000:1000

FROM base AS onnx
RUN pip install --no-cache-dir --no-deps /wheels/*.whl \
    && pip install --no-cache-dir "numpy>=1.26" "onnxruntime>=1.23" "pillow>=10.4" "pydicom>=3.0.1"
USER 1000:1000
