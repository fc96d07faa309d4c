"""What layers that come from Keras share: its batch normalisation and its initial values."""

import torch
from torch import Tensor, nn

# Keras' defaults for BatchNormalization; its momentum of 0.99 is 0.01 in PyTorch's terms.
BATCH_NORM = {"eps": 1e-3, "momentum": 0.01}


class VectorBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, C) as Keras has it: the population variance also in the running average.

    PyTorch's own takes B / (B - 1) times that, and refuses a batch of one, which gives the bias here.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises each channel over the batch: (B, C) to (B, C)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # (B, C)
        if self.training and x.shape[0] > 0:
            variance, mean = torch.var_mean(wide, 0, correction=0)  # (C,) each
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked.add_(1)
        else:
            mean, variance = self.running_mean, self.running_var
        return ((wide - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)


def init_as_keras(module: nn.Module) -> None:
    """For `Module.apply`: kernels uniform as Glorot and Bengio have it, biases 0."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
