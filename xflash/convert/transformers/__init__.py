"""Models of transformers (https://github.com/huggingface/transformers, made against 5.24) as flags and weights of ours.

Nothing here imports that library: a model's config says what it is, its named parameters are its weights.
"""

from typing import Any

import torch
from torch import nn

from ...stack.face import Decoder
from ...wrappers.transformer import TransformerWrapper
from .gpt2 import read_gpt2
from .llama import read_llama
from .neox import read_neox, read_phi
from .peer import Peer

__all__ = ["from_transformers"]

# By the class of the model; how each is read.
FAMILIES = {
    "GPT2LMHeadModel": read_gpt2,
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_llama,
    "Qwen2ForCausalLM": read_llama,
    "Qwen3ForCausalLM": read_llama,
    "Olmo2ForCausalLM": read_llama,
    "SmolLM3ForCausalLM": read_llama,
    "Phi3ForCausalLM": read_llama,
    "PhiForCausalLM": read_phi,
    "GPTNeoXForCausalLM": read_neox,
}


def from_transformers(model: nn.Module, long_texts: bool = False) -> TransformerWrapper:
    """The xflash model that has the flags, the weights and the logits of a model of transformers.

    It shares nothing with the old one, and has its dtype, device and mode. Of a model with longrope, which has one list
    of factors for short texts and one for long ones, `long_texts` takes the second for all texts. Dropout behind the
    blocks (`resid_pdrop`, `hidden_dropout`), which does nothing in eval mode, is left out. TypeError for a class that
    is not among `FAMILIES`; ValueError, with the name of the setting, for what xflash has no counterpart of.
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module) or name not in FAMILIES or not hasattr(model, "config"):
        raise TypeError(
            f"from_transformers takes one of {', '.join(FAMILIES)} of transformers, not "
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
    peer = Peer(model, long_texts)
    flags, arguments, weights = FAMILIES[name](peer)
    peer.finish()
    # On meta nothing is drawn from the generator, and a weight that was forgotten cannot go unnoticed.
    with torch.device("meta"):
        ours: Any = TransformerWrapper(attn_layers=Decoder(**flags), **arguments)
    ours.load_state_dict({key: t.contiguous() for key, t in weights.items()}, strict=True, assign=True)
    return ours.train(model.training)
