"""main.py with PyTorch's own Muon in place of ours: the packed q, k, v projection is one matrix to it.

python -m benchmarks.torch_muon --preset tiny
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

import torch

import main
import optimizers
from support.command import run


class TorchMuon(torch.optim.Muon):
    """Called as ours is."""

    def __init__(self, groups: list[dict], lr: float, momentum: float, weight_decay: float, dtype: torch.dtype):
        matrices = [p for group in groups for p in group["params"]]
        super().__init__(matrices, lr, weight_decay, momentum, nesterov=True)


if __name__ == "__main__":
    optimizers.Muon = TorchMuon
    run(main.main)
