"""What decays, what Muon takes, and that each parameter is in one group."""

import matrix
import pytest
import torch
from torch import nn

import xflash
from xflash.base.roles import roles_of

MATRICES = {("Linear", "weight"), ("Experts", "to_inner"), ("Experts", "to_out")}


def owners(model: nn.Module) -> dict[nn.Parameter, tuple[str, str]]:
    return {p: (type(m).__name__, n) for m in model.modules() for n, p in m.named_parameters(recurse=False)}


def test_the_roles_of_all_that_can_be_built():
    """Weights of linear maps, experts, convolutions and token embeddings, whatever else is a matrix too."""
    found: dict[str, set] = {"matrix": set(), "filter": set(), "embedding": set(), "head": set(), "other": set()}
    for kind, rows in matrix.stored().items():
        what, direction = kind.split()
        for row in rows["accepted"][::7]:
            with torch.device("meta"):
                model = matrix.domain_of(what)[1](direction == "causal", matrix.as_row(what, row))
            whose, roles = owners(model), roles_of(model)
            assert roles.keys() == set(model.parameters())
            for parameter, role in roles.items():
                found[role].add(whose[parameter])
    assert found["matrix"] == MATRICES and found["filter"] == {("Conv1d", "weight")}
    assert found["embedding"] == {("TokenEmbedding", "weight")} and found["head"] == {("Linear", "weight")}
    assert not found["other"] & (MATRICES | found["filter"] | found["embedding"])
    assert {name for _, name in found["other"]} >= {
        "gain",
        "gamma",
        "beta",
        "bias",
        "mem_kv",
        "tokens",
        "start",
        "q_gain",
    }
    assert {("LearnedPositions", "weight"), ("T5Bias", "weight"), ("ToeplitzBias", "weight")} <= found["other"]


def model(**flags) -> xflash.TransformerWrapper:
    stack = xflash.Decoder(dim=12, depth=1, heads=2, layers="attn moe", attn_gate_values=True, norm_bias=True)
    return xflash.TransformerWrapper(num_tokens=11, max_seq_len=5, attn_layers=stack, **flags)


def named(net: nn.Module, params: list[nn.Parameter]) -> set[str]:
    return {name for name, p in net.named_parameters() if any(p is other for other in params)}


def test_groups_as_they_are_asked_for():
    net = model()
    every = set(dict(net.named_parameters()))
    decayed, spared = (named(net, group["params"]) for group in net.param_groups(0.1))
    assert decayed | spared == every and not decayed & spared
    assert {"embedding.token_emb.weight", "to_logits.weight"} <= decayed and "embedding.pos_emb.weight" in spared
    rates = [(group["weight_decay"], group["use_muon"]) for group in net.param_groups(0.1)]
    assert rates == [(0.1, False), (0.0, False)]
    decayed, _ = sorted((named(net, g["params"]) for g in net.param_groups(0.1, embedding=False, head=False)), key=len)
    assert not decayed & {"embedding.token_emb.weight", "to_logits.weight"} and any("experts" in n for n in decayed)


def test_muon_takes_matrices_only():
    net = model()
    (flat,) = (group for group in net.param_groups(0.1, muon=True) if group["use_muon"])
    assert {p.dim() for p in flat["params"]} == {2}
    assert all("attn_layers" in name and "bias" not in name for name in named(net, flat["params"]))
    torch.optim.Muon(flat["params"], lr=1e-3, weight_decay=flat["weight_decay"])


def test_a_tied_weight_is_an_embedding_and_what_is_frozen_is_left_out():
    net = model(tie_embedding=True)
    net.attn_layers.requires_grad_(False)
    decayed, spared = (named(net, group["params"]) for group in net.param_groups(0.1))
    assert decayed == {"embedding.token_emb.weight"} and spared == {"embedding.pos_emb.weight"}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0, not -0.1"),
        ({"weight_decay": "1"}, TypeError, "weight_decay must be a number, not '1'"),
        ({"muon": 1}, TypeError, "muon must be True or False, not 1"),
    ],
)
def test_what_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        model().param_groups(**given)
