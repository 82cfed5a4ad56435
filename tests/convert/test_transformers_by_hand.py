"""`from_transformers` without that library: a LLaMA of a few lines that bears its names, and what is refused."""

import math
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xflash.convert import from_transformers

DIM, HEADS, KV_HEADS, WIDTH, INNER, LAYERS, TOKENS = 20, 6, 2, 10, 23, 2, 31
ROPE = {"rope_type": "llama3", "rope_theta": 700.0, "factor": 4.0, "original_max_position_embeddings": 16}
ROPE |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


class Config(types.SimpleNamespace):
    model_type = "llama"

    def to_dict(self):
        return {"model_type": self.model_type, **vars(self)}


def llama(**settings):
    """A module with the config and the tensors of a LLaMA."""
    model = type("LlamaForCausalLM", (nn.Module,), {})()
    model.config = Config(
        hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=WIDTH, hidden_act="silu",
        num_hidden_layers=LAYERS, intermediate_size=INNER, vocab_size=TOKENS, rms_norm_eps=1e-6, attention_dropout=0.0,
        max_position_embeddings=64, rope_parameters=ROPE, tie_word_embeddings=False, **settings,
    )  # fmt: skip
    sizes = {"embed_tokens": (TOKENS, DIM), "norm": (DIM,)}
    for i in range(LAYERS):
        at = f"layers.{i}."
        sizes |= {f"{at}input_layernorm": (DIM,), f"{at}post_attention_layernorm": (DIM,)}
        sizes |= {f"{at}self_attn.q_proj": (HEADS * WIDTH, DIM), f"{at}self_attn.o_proj": (DIM, HEADS * WIDTH)}
        sizes |= {f"{at}self_attn.{part}_proj": (KV_HEADS * WIDTH, DIM) for part in "kv"}
        sizes |= {f"{at}mlp.{part}_proj": (INNER, DIM) for part in ("up", "gate")}
        sizes |= {f"{at}mlp.down_proj": (DIM, INNER)}
    torch.manual_seed(0)
    for name, size in {**{f"model.{name}": size for name, size in sizes.items()}, "lm_head": (TOKENS, DIM)}.items():
        *path, last = name.split(".")
        holder = model
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        holder.add_module(last, nn.Module())
        getattr(holder, last).weight = nn.Parameter(0.6 * torch.randn(size, dtype=torch.float64))
    return model


def rms(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def turned(x):
    """Halves of a head's channels, by Llama 3.1's frequencies, (b, n, k)."""
    found = []
    for i in range(WIDTH // 2):
        frequency = torch.tensor(1 / 700.0 ** (2 * i / WIDTH), dtype=torch.float32).item()
        kept = min(max((16 * frequency / (2 * math.pi) - 1) / 3, 0), 1)
        found.append((1 - kept) * frequency / 4 + kept * frequency)
    angle = torch.arange(x.shape[1])[:, None] * torch.tensor(found, dtype=torch.float64)
    a, b = x.chunk(2, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def by_hand(w, ids):
    x = w["model.embed_tokens.weight"][ids]
    ahead = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        y = rms(x, w[f"{at}input_layernorm.weight"])
        q, k, v = (
            (y @ w[f"{at}self_attn.{part}_proj.weight"].mT).unflatten(-1, (-1, WIDTH)).unbind(2) for part in "qkv"
        )
        heads = []
        for h in range(HEADS):
            scores = turned(q[h]) @ turned(k[h // 3]).mT / WIDTH**0.5
            heads.append(scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v[h // 3])
        x = x + torch.cat(heads, -1) @ w[f"{at}self_attn.o_proj.weight"].mT
        y = rms(x, w[f"{at}post_attention_layernorm.weight"])
        up, gate = (y @ w[f"{at}mlp.{part}_proj.weight"].mT for part in ("up", "gate"))
        x = x + (F.silu(gate) * up) @ w[f"{at}mlp.down_proj.weight"].mT
    return rms(x, w["model.norm.weight"]) @ w["lm_head.weight"].mT


def test_logits_by_hand():
    model = llama()
    ids = torch.randint(TOKENS, (2, 23))
    expected = by_hand(dict(model.named_parameters()), ids)
    assert expected.std() > 0.5
    ours = from_transformers(model)
    torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=0)
    assert ours.to_config()["attn_layers"]["rotary_scaling"] == "llama3"
    assert ours.attn_layers.to_config()["layers"] == "attn ff"


def smollm3(**settings):
    """The same with windows in some layers, and positions in all."""
    settings = {"use_sliding_window": True, "sliding_window": 7, "no_rope_layers": [1] * LAYERS, **settings}
    return llama(**settings, model_type="smollm3")


def test_windows_of_some_layers():
    ours = from_transformers(smollm3(layer_types=["full_attention", "sliding_attention"]))
    assert ours.attn_layers.to_config()["layers"] == "attn ff attn(window=7) ff"


def test_other_kinds_of_layers_are_refused():
    with pytest.raises(ValueError, match="layer_types='chunked' of a 'smollm3' config has no counterpart"):
        from_transformers(smollm3(layer_types=["chunked"] * LAYERS))


REFUSED = {
    "hidden_act='gelu_10' of a 'llama' config has no counterpart in xflash; known are silu, ": lambda m: setattr(
        m.config, "hidden_act", "gelu_10"
    ),
    r"residual_multiplier=0\.2 of a 'llama' config is not known here and could change the outputs": lambda m: setattr(
        m.config, "residual_multiplier", 0.2
    ),
    "rope_type='new' of a 'llama rope' config has no counterpart": lambda m: setattr(
        m.config, "rope_parameters", {"rope_type": "new"}
    ),
    "base2=3 of a 'llama rope' config is not known here": lambda m: setattr(
        m.config, "rope_parameters", {**ROPE, "base2": 3}
    ),
    "the 'llama' config has no hidden_size": lambda m: setattr(m.config, "hidden_size", None),
    "there are no flags here for the model_type 'lama'; known are .*; did you mean 'llama'": lambda m: setattr(
        m.config, "model_type", "lama"
    ),
    r"there is no place for the weight 'layers\.1\.mlp\.extra\.weight'": lambda m: m.model.layers.get_submodule(
        "1.mlp"
    ).add_module("extra", nn.Linear(3, 3, bias=False)),
    r"there is no weight 'layers\.1\.mlp\.up_proj\.weight'": lambda m: delattr(
        m.model.layers.get_submodule("1.mlp"), "up_proj"
    ),
    r"the weight 'norm\.weight' is of shape \(3,\), not \(20,\)": lambda m: m.model.add_module(
        "norm", nn.LayerNorm(3, bias=False)
    ),
    "a LlamaForTokens has a head without a counterpart in xflash; those with one end with": lambda m: setattr(
        type(m), "__name__", "LlamaForTokens"
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_there_is_no_counterpart_of_is_refused_by_name(message):
    model = llama()
    REFUSED[message](model)
    with pytest.raises(ValueError, match=message):
        from_transformers(model)


@pytest.mark.parametrize("other", [nn.Linear(2, 2), None, "gpt2"])
def test_other_classes_are_refused(other):
    with pytest.raises(TypeError, match="from_transformers takes a model of transformers, such as"):
        from_transformers(other)


def test_factors_of_long_texts_are_asked_for_where_there_are_some():
    with pytest.raises(ValueError, match=r"long_context=True takes .* but this 'llama' config has none"):
        from_transformers(llama(), long_context=True)
