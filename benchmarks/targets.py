"""The targets of the benchmarks, and the values when each target was set."""

from typing import NamedTuple


class Target(NamedTuple):
    """The target of a comparison of comparisons.py, in units of its ratio; `before` in words."""

    before: str
    bound: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


TARGETS = {
    # AVX-512, two threads
    "ss2d.old_yardstick": Target("72 %", 0.95),
    "ss2d/torch": Target("36x", 50),
    "ss2d/reference": Target("90x", 130),
    "ss2d+b.old_yardstick": Target("14 to 19 %", 0.24),
    "ss2d_n1/torch": Target("49x", 60),
    "ss2d_14.old_yardstick": Target("", 0.5),
    "selective_scan/ss2d": Target("67 %", 0.8),
    "directional/cross": Target("", 0.95),
    "directional/random": Target("", 0.85),
    "ss2d.avx2": Target("38 to 56 %", 0.35),
    "layer/scan": Target("1.8x to 2.1x", 1.8, at_most=True),
    "layer.memory": Target("3 %", 0.04, at_most=True),
    "causal_conv1d-forward": Target("", 5),
    "causal_conv1d-forward_backward": Target("", 3),
    # task interaction
    "interaction_14.parts": Target("74 %", 0.9),
    "interaction_28.parts": Target("89 %", 0.9),
    "interaction_56-forward/eager": Target("6.1x", 4),
    "interaction_56-forward/torch-compile": Target("1.9x", 3),
    "interaction_56-forward_backward/eager": Target("4.3x", 3),
    "interaction_56-forward_backward/torch-compile": Target("3.6x", 3),
    "interaction_112-forward/eager": Target("7.8x", 4),
    "interaction_112-forward/torch-compile": Target("2.2x", 3),
    "interaction_112-forward_backward/eager": Target("4.6x", 3),
    "interaction_112-forward_backward/torch-compile": Target("4.2x", 3),
    "interaction.memory": Target("21 %", 1, at_most=True),
    # networks
    "medmamba_t/torch": Target("5.3x", 6),
    "medmamba_t.scans": Target("17 %", 0.25, at_most=True),
    "medmamba_t.before": Target("1.0x", 0.7, at_most=True),
    "vmamba_t_s1l8.before": Target("1.0x", 0.7, at_most=True),
    "hybrid_vssm.before": Target("1.0x", 0.7, at_most=True),
    "plain_medmamba_t/plain": Target("29x", 15),
    "plain_medmamba_t-training/plain": Target("20x", 20),
    # outside PyTorch
    "mbdi.onnx": Target("1.0x", 0.9, at_most=True),
    "btinet.onnx": Target("1.0x", 0.9, at_most=True),
    "mbdi.int8": Target("", 0.5, at_most=True),
    "medmamba_t.onnx": Target("", 0.7, at_most=True),
    "vmamba_t_s1l8.onnx": Target("", 0.7, at_most=True),
    "hybrid_vssm.onnx": Target("", 0.7, at_most=True),
    "medmamba_t.onnx/onnxruntime": Target("", 10),
    "medmamba_t.onnx/openvino": Target("", 6),
    "mbdi.optimized": Target("1.6x", 1, at_most=True),
    "cold_start": Target("", 0.25, at_most=True),
}
