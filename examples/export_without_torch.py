"""Export and run without torch: the U-Net of layer_in_your_unet.py as an ONNX file, run where torch cannot be imported.

`python export_without_torch.py 30` trains for 30 steps first. Needs the extras `train` and `deploy`, draws
export_without_torch.png.
"""

import subprocess
import sys
import tempfile

import numpy as np
import torch
from layer_in_your_unet import train
from plain_pictures import draw_rows
from plain_training import phantoms

import mtlkit

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # every import of it fails
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])  # one file, to be copied along
session = onnxruntime.InferenceSession("unet.onnx", options)
np.save("logits.npy", session.run(None, {"images": np.load("images.npy")})[0])
"""


def main() -> None:
    """Trains, exports, runs the network with and without torch, and compares."""
    model = train(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
    images, _ = phantoms(range(1000, 1006))
    with torch.no_grad():
        ours = model(images).numpy()

    with tempfile.TemporaryDirectory() as folder:
        print(mtlkit.export(model, f"{folder}/unet.onnx", example=images))
        np.save(f"{folder}/images.npy", images.numpy())
        command = [sys.executable, "-c", WITHOUT_TORCH, mtlkit.deploy.library_path()]
        subprocess.run(command, cwd=folder, check=True)
        theirs = np.load(f"{folder}/logits.npy")
    print(f"logits differ by {np.abs(theirs - ours).max():.0e}")

    rows = {"phantom": images[:, 0], "PyTorch": ours[:, 0] > 0, "ONNX Runtime": theirs[:, 0] > 0}
    draw_rows("export_without_torch.png", rows, f"logits differ by {np.abs(theirs - ours).max():.0e}")


if __name__ == "__main__":
    main()
