"""Contrastive decoding, several end tokens, and how likely what was generated is."""

import pytest
import torch
from tiny_lm import TinyLM

from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper, XTransformer, top_k
from xflash.generation.contrast import contrast

V = 31


def model(seed, dim=14, **own):
    torch.manual_seed(seed)
    stack = Decoder(dim=dim, depth=1, heads=2, attn_dim_head=6, **({} if "max_seq_len" in own else {"pos": "rotary"}))
    net = TransformerWrapper(num_tokens=V, attn_layers=stack, **own).double()
    with torch.no_grad():
        net.to_logits.weight.mul_(6)
    return net


def by_definition(nets, settings, ids, n):
    """The likeliest tokens of contrasted logits, everything read anew for each."""
    made = ids
    for _ in range(n):
        logits = nets[0](made)[:, -1]
        for net, (beta, alpha) in zip(nets[1:], settings, strict=True):
            other = net(made)[:, -1]
            low = logits.softmax(-1) < alpha * logits.softmax(-1).amax(-1, keepdim=True)
            logits = ((1 + beta) * logits - beta * other).masked_fill(low, -torch.inf)
        made = torch.cat((made, logits.argmax(-1, keepdim=True)), 1)
    return made[:, ids.shape[1] :]


def prompts(n=5):
    return torch.randint(V, (3, n), generator=torch.Generator().manual_seed(4))


def test_it_is_what_the_weaker_models_would_not_say():
    nets, ids = [model(0).eval(), model(1, dim=10).train(), model(2).eval()], prompts()
    sampler = AutoregressiveWrapper(nets[0])
    for count, settings in ((1, {"beta": 2.0, "alpha": 0.03}), (2, [{"beta": 2.0}, {"alpha": 0.5}])):
        amateurs = [AutoregressiveWrapper(nets[1]), nets[2]][:count]
        given = {"amateur_model": amateurs if count == 2 else amateurs[0], "contrastive_decode_kwargs": settings}
        listed = settings if isinstance(settings, list) else [settings]
        told = [(one.get("beta", 0.5), one.get("alpha", 0.1)) for one in listed]
        wanted = by_definition(nets[: count + 1], told, ids, 6)
        assert not torch.equal(wanted, by_definition(nets[:1], [], ids, 6))
        for more in ({}, {"cache_kv": False}, {"return_log_probs": False}):
            assert torch.equal(sampler.generate(ids, 6, temperature=0.0, **given, **more), wanted)
        assert torch.equal(torch.stack(list(sampler.stream(ids, 6, temperature=0.0, **given)), 1), wanted)
        rows = sampler.generate([ids[0, 2:], ids[1]], 6, temperature=0.0, **given)
        assert torch.equal(rows[0], by_definition(nets[: count + 1], told, ids[:1, 2:], 6)[0])
        assert torch.equal(rows[1], wanted[1])
    assert nets[1].training and not nets[0].training


def test_what_may_be_drawn():
    """All that is likely enough, and nothing else; a filter that is said holds too."""
    nets, ids = [model(0), model(1)], prompts()
    sampler, found = AutoregressiveWrapper(nets[0]), []
    with torch.no_grad():
        mixed = contrast(*(net(ids)[:, -1] for net in nets), alpha=0.01)
    for filters in ({}, {"filter_logits_fn": "top_k", "filter_kwargs": {"k": 2}}):
        torch.manual_seed(0)
        options = {"amateur_model": nets[1], "contrastive_decode_kwargs": {"alpha": 0.01}, "temperature": 9.0}
        drawn = sampler.generate(ids[:1].expand(500, -1), 1, **options, **filters)
        found.append(set(drawn.flatten().tolist()))
    kept = mixed[0].isfinite().nonzero().flatten().tolist()
    assert found[0] == set(kept) and len(kept) > 2
    assert found[1] == set(top_k(mixed[0], k=2).isfinite().nonzero().flatten().tolist())


def test_limits_of_all_models_hold():
    ids, sampler = prompts(6), AutoregressiveWrapper(model(0))
    with pytest.raises(ValueError, match="but the model has max_seq_len=8"):
        sampler.generate(ids, 5, amateur_model=model(1, max_seq_len=8))


def test_who_cannot_be_contrasted():
    sampler, ids = AutoregressiveWrapper(model(0)), prompts()
    wide = TransformerWrapper(num_tokens=V + 1, attn_layers=Decoder(dim=14, depth=1, pos="rotary")).double()
    for given, error, match in (
        (
            {"amateur_model": wide},
            ValueError,
            "amateur_model gives logits of 32 tokens, but the model it",
        ),
        ({"amateur_model": 3}, TypeError, "net must be a model from token ids to logits"),
        ({"amateur_model": []}, ValueError, "amateur_model is an empty list: give a model, several, or None"),
        ({"contrastive_decode_kwargs": {"beta": 1}}, ValueError, "contrast with amateur_model, which is not given"),
        ({"amateur_model": model(1), "contrastive_decode_kwargs": [{}, {}]}, ValueError, "1 models in .* and 2 contra"),
        ({"amateur_model": model(1), "contrastive_decode_kwargs": 0.5}, TypeError, "must map names to values"),
        ({"amateur_model": model(1), "contrastive_decode_kwargs": {"bta": 1}}, TypeError, "has no 'bta'; did you mean"),
        ({"amateur_model": model(1), "contrastive_decode_kwargs": {"alpha": 0}}, ValueError, "alpha must be above 0"),
        ({"return_log_probs": 1}, TypeError, "return_log_probs must be True or False, not 1"),
        ({"eos_token": []}, ValueError, "eos_token is an empty list: give None where no token ends a row"),
        ({"eos_token": [3, V]}, ValueError, r"eos_token\[1\]=31 is not in the model's vocabulary of 31 tokens"),
    ):
        with pytest.raises(error, match=match):
            sampler.generate(ids, 3, **given)


class Stepless(torch.nn.Module):
    causal = True

    def forward(self, ids, mask=None):
        return torch.nn.functional.one_hot(ids, V).double()


def test_a_weaker_model_without_a_state():
    sampler, ids = AutoregressiveWrapper(model(0)), prompts()
    with pytest.raises(TypeError, match=r"Stepless has no step\(ids, state, mask=\): give cache_kv=False"):
        sampler.generate(ids, 3, amateur_model=Stepless())
    assert sampler.generate(ids, 3, amateur_model=Stepless(), cache_kv=False).shape == (3, 3)


def test_several_end_tokens():
    """The first of them that comes ends its row, in sampling and in beams."""
    sampler, ids = AutoregressiveWrapper(model(0), pad_value=30), prompts()
    whole = sampler.generate(ids, 9, temperature=0.0)
    eos = [whole[0, 4].item(), whole[1, 6].item(), whole[2, 5].item()]
    made = sampler.generate(ids, 9, temperature=0.0, eos_token=eos)
    first = [next(i for i, token in enumerate(row) if token in eos) for row in whole.tolist()]
    for row, at in enumerate(first):
        assert torch.equal(made[row, : at + 1], whole[row, : at + 1]) and (made[row, at + 1 :] == 30).all()
    assert made.shape[1] == max(first) + 1
    assert torch.equal(
        sampler.generate(ids, 9, temperature=0.0, eos_token=(eos[0],)),
        sampler.generate(ids, 9, temperature=0.0, eos_token=eos[0]),
    )
    held = sampler.generate(ids, 9, temperature=0.0, eos_token=eos, min_tokens=8)
    assert not torch.isin(held[:, :8], torch.tensor(eos)).any()
    beam = sampler.beam_search(ids, 9, beams=1, eos_token=eos)
    assert torch.equal(beam, made)
    assert torch.equal(torch.stack(list(sampler.stream(ids, 9, temperature=0.0, eos_token=eos)), 1), made)


def test_how_likely_what_was_generated_is():
    net, ids = model(0).eval(), prompts()
    sampler = AutoregressiveWrapper(net, pad_value=30)
    torch.manual_seed(3)
    options = {"temperature": 1.7, "repetition_penalty": 1.3, "eos_token": [1, 2, 3, 4, 5, 6]}
    made, likely = sampler.generate(ids, 9, return_log_probs=True, **options)
    torch.manual_seed(3)
    assert torch.equal(sampler.generate(ids, 9, **options), made) and likely.shape == made.shape
    with torch.no_grad():
        every = net(torch.cat((ids, made), 1))[:, ids.shape[1] - 1 : -1].log_softmax(-1)
    right = every.gather(-1, made[..., None])[..., 0]
    ended = torch.isin(made, torch.tensor(options["eos_token"])).long().cumsum(1)
    behind = (ended - torch.isin(made, torch.tensor(options["eos_token"])).long()) > 0
    assert behind.any() and (likely[behind] == 0).all()
    torch.testing.assert_close(likely[~behind], right[~behind])
    torch.manual_seed(3)
    pairs = list(sampler.stream(ids[0], 4, return_log_probs=True, **options))
    assert all(token.shape == likely.shape == () for token, likely in pairs)


def test_pairs_are_contrasted_too():
    sizes = {"depth": 1, "heads": 1, "num_tokens": V, "max_seq_len": 16}
    sides = {f"{side}_{name}": size for side in ("enc", "dec") for name, size in sizes.items()}
    torch.manual_seed(0)
    strong, weak = XTransformer(dim=14, **sides), XTransformer(dim=14, **sides)
    made, likely = strong.generate(
        prompts(), prompts(1), 4, temperature=0.0, amateur_model=weak.decoder, eos_token=[2, 3], return_log_probs=True
    )
    assert made.shape == likely.shape and not torch.equal(
        made, strong.generate(prompts(), prompts(1), 4, temperature=0.0)
    )


def test_a_net_of_ones_own_is_contrasted():
    assert AutoregressiveWrapper(TinyLM()).generate(prompts() % 3, 2, amateur_model=TinyLM()).shape == (3, 2)
