#!/bin/sh
# Installs nvcc and the static CUDA runtime into a folder, from NVIDIA's Python packages: tools/install_nvcc.sh /opt/cuda
# The major version is that of the CUDA with which PyTorch comes; drivers of the same major version run the kernels.
set -eu
folder=$1
python=${PYTHON:-/opt/python/cp312-cp312/bin/python}
"$python" -m pip install --quiet --target "$folder/python" \
  "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cccl==13.0.*"
for part in bin include lib nvvm; do
  ln -sfn "$folder/python/nvidia/cu13/$part" "$folder/$part"
done
ln -sfn "$folder/lib" "$folder/lib64"
"$folder/bin/nvcc" --version
