#!/bin/sh
# Installs nvcc and the static CUDA runtime from NVIDIA's Python packages: after tools/install_nvcc.sh /opt/cuda the
# compiler is /opt/cuda/nvidia/cu13/bin/nvcc. The version is the CUDA of PyTorch's default build.
set -eu
folder=$1
python=${PYTHON:-/opt/python/cp312-cp312/bin/python}
"$python" -m pip install --quiet --target "$folder" "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" \
  "nvidia-nvvm==13.0.*" "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cccl==13.0.*"
ln -sfn lib "$folder/nvidia/cu13/lib64"  # where nvcc looks for the runtime
"$folder/nvidia/cu13/bin/nvcc" --version
