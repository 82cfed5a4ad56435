"""Small models of transformers with random weights, whose sizes are multiples of nothing."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

V = 71
SIZES = {
    "vocab_size": V,
    "hidden_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 53,
    "max_position_embeddings": 23,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def causal(kind, dtype=torch.float32, **settings):
    """A language model of a kind of config; gains are not one, biases not zero."""
    known = AutoConfig.for_model(kind).to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in known}
    config = AutoConfig.for_model(kind, **{**sizes, **IDS, **settings})
    model = AutoModelForCausalLM.from_config(config)
    if hasattr(model, "set_experts_implementation"):
        # The other ways take rows of whole 16 bytes.
        model.set_experts_implementation("eager")
    return live(model, dtype)


def of_class(cls, dtype=torch.float32, **settings):
    """A model of a class of transformers, in the sizes that its config has."""
    known = cls.config_class().to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return live(cls(cls.config_class(**{**sizes, **IDS, **settings})), dtype)


def live(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.15 if parameter.dim() > 1 else 0.2
            noise = torch.randn(parameter.shape, generator=generator) * size
            parameter.copy_(noise + 1 if parameter.dim() == 1 and name.endswith("weight") else noise)
    return model.to(dtype).eval()


def tokens(rows, n, seed=1):
    return torch.randint(3, V, (rows, n), generator=torch.Generator().manual_seed(seed))


def same(ours, others):
    """Whether two models have the same weights, to the bit."""
    found, expected = ours.state_dict(), others.state_dict()
    assert list(found) == list(expected)
    for name, t in found.items():
        assert t.dtype == expected[name].dtype and torch.equal(t, expected[name]), name


def nothing_is_shared(theirs, convert):
    """What is done to a converted model leaves the other one as it was."""
    before = {name: t.clone() for name, t in theirs.state_dict().items()}
    with torch.no_grad():
        for parameter in convert(theirs).parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[name]) for name, t in theirs.state_dict().items())
