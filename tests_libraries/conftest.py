"""What lets transformers and timm be imported beside a PyTorch for CPUs; nothing here asks a network."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"

if torch.version.cuda is None:
    # The package index has torchvision with CUDA only, whose operators do not load here. Nobody calls them, but
    # importing it describes these two.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
