"""Stacks that are gone through several times: recycled and looped."""

import model_laws
import pytest
import torch
from laws import close, live

from xflash import AutoregressiveWrapper, Decoder, Encoder, RecurrentMemoryWrapper, TransformerWrapper
from xflash.wrappers.passes import passes_before
from xflash.wrappers.wanted import Wanted

V, D, N = 11, 12, 9
WANTED = Wanted()


def net(cls=Decoder, flags=None, **arguments):
    torch.manual_seed(0)
    stack = cls(dim=D, depth=1, heads=2, attn_dim_head=6, **(flags or {}))
    return TransformerWrapper(**{"num_tokens": V, "max_seq_len": 67, **arguments}, attn_layers=stack)


@pytest.fixture
def ids():
    return torch.randint(V, (3, N), generator=torch.Generator().manual_seed(1))


def test_a_recycled_pass_reads_the_last_one(ids):
    model = live(net(recycling=True))
    x, _ = model.embedding(ids)
    last = model.attn_layers(x)
    for steps in (2, 3):
        last = model.attn_layers(x + model.passes.project(last))
        close(model(ids, recycle_steps=steps), model.logits(last), f"{steps} passes")
    close(model(ids, recycle_steps=1), model.logits(model.attn_layers(x)), "one pass")
    close(model(ids), model(ids, recycle_steps=4), "as many as in training at most")
    # Only the last pass has a graph, and what it does not use gets zeros.
    logits = model(ids, recycle_steps=1)
    logits.square().sum().backward()
    assert (model.passes.project.weight.grad == 0).all()
    model.zero_grad()
    cut = x + model.passes.project(model.attn_layers(x).detach())
    model.logits(model.attn_layers(cut)).square().sum().backward()
    right = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(ids, recycle_steps=2).square().sum().backward()
    for name, p in model.named_parameters():
        close(p.grad, right[name], name)


def test_training_draws_how_many(ids):
    model = live(net(recycling=True, train_max_recycle_steps=3)).train()
    seen = {str(model(ids).sum().item()) for _ in range(20)}
    each = {str(model(ids, recycle_steps=steps).sum().item()) for steps in (1, 2, 3)}
    assert seen == each
    torch.manual_seed(4)
    first = model(ids)
    torch.manual_seed(4)
    assert torch.equal(first, model(ids))


def test_a_looped_pass_reads_what_the_last_one_made(ids):
    model = live(net(looped=True, max_looped_steps=3))
    x, _ = model.embedding(ids)
    close(model(ids, looped_steps=2), model.logits(model.attn_layers(model.attn_layers(x))), "twice")
    close(model(ids), model(ids, looped_steps=3), "as often as the flag says")
    loss = AutoregressiveWrapper(model)(ids, looped_steps=2)
    close(loss, AutoregressiveWrapper(model, loss_chunk=3)(ids, looped_steps=2), "in chunks")


@pytest.mark.parametrize("kind", ["looped", "recycling"])
def test_the_loss_of_layers_is_of_every_pass_that_is_learned_from(ids, kind):
    """Looped, a mean as over tied layers; recycled, of the last pass, which alone has a graph."""
    experts = {"layers": "attn moe", "moe_experts": 3, "moe_dim": 5, "moe_balance_loss": 3.0}
    model = live(net(flags=experts, **{kind: True}))
    last, found = model.embedding(ids)[0], []
    x = last
    for _ in range(3):
        last, loss = model.attn_layers(last, return_auxiliary_loss=True)
        found.append(loss)
        last = last if kind == "looped" else x + model.passes.project(last)
    steps = {"looped_steps" if kind == "looped" else "recycle_steps": 3}
    _, loss = model(ids, **steps, return_auxiliary_loss=True)
    close(loss, torch.stack(found).mean() if kind == "looped" else found[-1], kind)
    trainer = AutoregressiveWrapper(model)
    _, own = model(ids[:, :-1], **steps, return_auxiliary_loss=True)
    close(trainer.train()(ids, **steps), trainer.eval()(ids, **steps) + own, "trained")


CASES = {
    "recycled": (Encoder, {"shift_tokens": 1}, {"recycling": True, "use_cls_token": True}),
    "looped": (Encoder, {"num_memory_tokens": 2, "norm_place": "sandwich"}, {"looped": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_laws(name, tmp_path):
    cls, flags, arguments = CASES[name]
    model_laws.model_laws(net(cls, flags, **arguments), tmp_path)


def test_what_a_causal_one_makes(ids):
    model = live(net(recycling=True))
    grad = torch.autograd.functional.jacobian(
        lambda x: model.logits(model.through(x, None, {}, WANTED, passes_before(model.passes, 3, None))[0]).sum((0, 2)),
        model.embedding(ids)[0].detach(),
    )
    assert all(grad[i, :, i + 1 :].abs().max() == 0 for i in range(N - 1))
    with pytest.raises(ValueError, match="recycling=True has no step: a state holds what one pass has seen"):
        AutoregressiveWrapper(model).generate(ids, 2)
    made = AutoregressiveWrapper(model).generate(ids, 2, cache_kv=False, temperature=0)
    assert torch.equal(made[:, 0], model(ids)[:, -1].argmax(-1))


def test_what_excludes_each_other(ids):
    for given, match in (
        ({"recycling": True, "looped": True}, "recycling=True and looped=True exclude each other"),
        ({"train_max_recycle_steps": 2}, "train_max_recycle_steps=2 is set, but recycling is False"),
        ({"max_looped_steps": 2}, "max_looped_steps=2 is set, but looped is False"),
        ({"looped": True, "max_mem_len": 3}, "looped=True has no state, so max_mem_len=3 cannot be set"),
    ):
        with pytest.raises(ValueError, match=match):
            net(**given)
    with pytest.raises(ValueError, match="recycle_steps=2 is given, but the model was built without recycling=True"):
        net()(ids, recycle_steps=2)
    with pytest.raises(ValueError, match="recycle_steps=2 is given, but the model was built with looped=True"):
        net(looped=True)(ids, recycle_steps=2)
    with pytest.raises(ValueError, match="recycle_steps must be at least 1, not 0"):
        net(recycling=True)(ids, recycle_steps=0)
    with pytest.raises(ValueError, match="looped=True has no step: a state holds what one pass has seen"):
        RecurrentMemoryWrapper(net(looped=True), 2, 3)
    with pytest.raises(ValueError, match="gives logits of 2 heads: one that is read in segments"):
        RecurrentMemoryWrapper(net(num_output_heads=2), 2, 3)
