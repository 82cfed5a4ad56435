"""Models of several ids a token: the laws, what is summed, and what is refused."""

import model_laws
import pytest
import torch
from laws import live

from xflash import AutoregressiveWrapper, Decoder, Encoder, MultiInputTransformerWrapper

COUNTS = {"note": 11, "type": 5}


def net(cls=Decoder, flags=None, **arguments):
    torch.manual_seed(0)
    stack = cls(dim=12, depth=1, heads=2, attn_dim_head=6, **(flags or {}))
    return MultiInputTransformerWrapper(**{"num_tokens": COUNTS, "max_seq_len": 67, **arguments}, attn_layers=stack)


@pytest.fixture
def x():
    chance = torch.Generator().manual_seed(1)
    return {name: torch.randint(count, (3, 9), generator=chance) for name, count in COUNTS.items()}


# Beside what the covering set has of causal ones.
CASES = {
    "pooled": (Encoder, {}, {"use_cls_token": True, "num_cls_tokens": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_laws(name, tmp_path):
    cls, flags, arguments = CASES[name]
    model_laws.model_laws(net(cls, flags, **arguments), tmp_path)


def test_inputs_are_summed_and_each_has_a_head(x):
    model = live(net())
    embed = model.embedding.embeds
    right = embed["note_embed"].weight[x["note"]] + embed["type_embed"].weight[x["type"]]
    ids, _ = model.embedding.check(x, None)
    torch.testing.assert_close(model.embedding(ids)[0], right + model.embedding.pos_emb.weight[:9])
    logits, y = model(x, return_logits_and_embeddings=True)
    assert list(logits) == ["note", "type"]
    torch.testing.assert_close(logits["type"], y @ model.to_logits["type_logits"].weight.T)
    again = model({"type": x["type"], "note": x["note"]})
    assert all(torch.equal(again[name], logits[name]) for name in COUNTS)
    assert torch.equal(model(torch.stack((x["note"], x["type"]), -1))["note"], logits["note"])


def test_what_is_no_input(x):
    model = net()
    for wrong, error, match in (
        (x["note"], TypeError, "x must be a mapping of 'note', 'type' to integer tensors"),
        ({"note": x["note"]}, ValueError, "x has no 'type': every call gives ids for all of num_tokens"),
        ({**x, "tipe": x["type"]}, ValueError, "x has 'tipe', but num_tokens has 'note', 'type'; did you mean 'type'"),
        ({**x, "type": x["type"][:, :3]}, ValueError, r"x\['type'\] has shape \(3, 3\): all inputs are"),
        ({**x, "type": x["type"].float()}, TypeError, r"x\['type'\] must be an integer tensor"),
        ({**x, "type": x["type"] + 5}, ValueError, r"x\['type'\] must be from 0 to 4"),
    ):
        with pytest.raises(error, match=match):
            model(wrong)
    with pytest.raises(ValueError, match="num_tokens has no inputs"):
        net(num_tokens={})
    with pytest.raises(ValueError, match=r"num_tokens\['note'\] must be at least 1, not 0"):
        net(num_tokens={"note": 0})
    with pytest.raises(TypeError, match="gives logits of several ids a token"):
        AutoregressiveWrapper(model)
    with pytest.raises(TypeError, match="has no generate: step gives the logits of each input"):
        model.generate(x, 2)
