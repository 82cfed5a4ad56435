"""A small causal model and prompts for it."""

import pytest
import torch
from tiny_lm import TinyLM

from xflash import AutoregressiveWrapper


@pytest.fixture
def model():
    return AutoregressiveWrapper(TinyLM().double()).eval()


@pytest.fixture
def prompts():
    return torch.randint(0, 11, (3, 5))
