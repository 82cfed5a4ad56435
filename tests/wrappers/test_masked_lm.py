"""The masked language model: what is hidden, what is asked, what is filled in."""

import copy
import math

import laws
import pytest
import torch
import torch.nn.functional as F
from hidden_tokens import CLS, HIDDEN, PAD, SEP, SPECIAL, VOCABULARY, B, N, batch, encoder, masked_lm, seeded
from torch._dynamo.testing import CompileCounterWithBackend

import xflash
from xflash import NonAutoregressiveWrapper
from xflash.wrappers.hiding import SCHEDULES, random_subset, reveal


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_how_many_tokens_are_chosen(share):
    """A share rounded up of each row's tokens that can be: none that is special, and none where there is none."""
    model = masked_lm(mask_prob=share, **SPECIAL)
    ids, lengths = batch()
    _, _, targets = model(ids, generator=seeded(), return_outputs=True)
    chosen = targets != -100
    assert torch.equal(targets[chosen], ids[chosen])
    assert not torch.isin(ids[chosen], torch.tensor([HIDDEN, PAD, CLS, SEP])).any()
    assert chosen.sum(1).tolist() == [math.ceil(round(share * (n - 2), 6)) for n in lengths.tolist()]


def test_one_token_at_least_is_chosen():
    model = masked_lm(mask_prob=1e-9, **SPECIAL)
    ids, lengths = batch()
    counts = model.choose(ids, ids != PAD, seeded()).chosen.sum(1)
    assert counts.tolist() == [min(1, n - 2) for n in lengths.tolist()]


def test_the_mask_of_a_call_keeps_tokens_out():
    model = masked_lm(mask_prob=1.0)
    ids, lengths = batch()
    mask = torch.arange(N) < lengths[:, None]
    _, _, targets = model(ids, mask.long(), return_outputs=True)
    assert torch.equal(targets != -100, mask)
    _, both = masked_lm(pad_token_id=PAD).as_ids(ids, torch.arange(N).expand(B, -1) > 0)
    assert torch.equal(both, mask & (torch.arange(N) > 0))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_share_that_is_drawn_for_each_row(schedule):
    model = masked_lm(mask_prob=schedule)
    ids = torch.randint(1, 20, (997, N), generator=seeded(1))
    counts = model.choose(ids, None, seeded()).chosen.sum(1)
    assert counts.min() >= 1 and counts.max() == N
    expected = {"linear": 1 / 2, "cosine": 2 / math.pi}[schedule]
    assert (counts / N).mean().item() == pytest.approx(expected, abs=0.04)


def test_what_becomes_of_the_chosen_tokens():
    model = masked_lm(mask_prob=1.0, replace_prob=0.6, random_token_prob=0.3, **SPECIAL)
    ids = torch.full((61, N), 7)
    given = model.corrupt(ids, torch.ones_like(ids).bool(), seeded())
    counts = given.flatten().bincount(minlength=VOCABULARY) / ids.numel()
    assert counts[[PAD, CLS, SEP]].sum() == 0
    assert counts[HIDDEN].item() == pytest.approx(0.6, abs=0.03)
    assert counts[7].item() == pytest.approx(0.1 + 0.3 / 19, abs=0.03)
    assert counts[1:7].tolist() == pytest.approx([0.3 / 19] * 6, abs=0.012)
    nothing = torch.zeros_like(ids).bool()
    assert torch.equal(model.corrupt(ids, nothing, seeded()), ids)


def test_the_loss_is_the_cross_entropy_of_the_chosen_tokens():
    model = masked_lm(mask_prob=0.4, replace_prob=0.8, random_token_prob=0.1, **SPECIAL).double().eval()
    ids, _ = batch()
    loss, logits, targets = model(ids, generator=seeded(), return_outputs=True)
    generator = seeded()
    chosen = model.choose(ids, ids != PAD, generator).chosen
    given = model.corrupt(ids, chosen, generator)
    expected = model.net(given, ids != PAD)
    laws.close(logits, expected, "logits")
    each = [-expected[b, n].log_softmax(-1)[ids[b, n]] for b, n in chosen.nonzero().tolist()]
    laws.close(loss, torch.stack(each).mean(), "loss")
    assert torch.equal(targets, torch.where(chosen, ids, -100))


def test_padding_changes_nothing():
    """What a row's loss is does not depend on how it is padded, and what stands at masked places on nothing."""
    model = masked_lm(mask_prob=1.0, replace_prob=1.0, **SPECIAL).double().eval()
    ids, lengths = batch()
    alone = torch.stack([model(ids[row : row + 1, :n]) for row, n in enumerate(lengths.tolist())])
    together = torch.stack([model(ids[row : row + 1]) for row in range(B)])
    laws.close(together, alone, "padding")
    assert together[-1] == 0
    mask = ids != PAD
    laws.close(masked_lm(model.net, mask_prob=1.0, replace_prob=1.0, mask_ignore_token_ids=(CLS, SEP))(
        ids.masked_fill(~mask, -100), mask
    ), model(ids), "what stands at masked places")  # fmt: skip


def test_chance_comes_from_the_generator():
    model = masked_lm(replace_prob=0.5, random_token_prob=0.4, mask_prob="cosine")
    ids, _ = batch()
    before = torch.get_rng_state()
    losses = [model(ids, generator=seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    model.generate(batch_size=2, seq_len=7, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_everything_else_goes_to_the_net():
    net = encoder(embed_num_tokens={"segment": 2})
    model = masked_lm(net).eval()
    ids, _ = batch()
    segment = {"embed_ids": {"segment": ids % 2}}
    prefix = torch.randn(B, 3, 14)
    loss, logits, _ = model(ids, generator=seeded(), return_outputs=True, prepend_embeds=prefix, **segment)
    assert logits.shape == (B, N, VOCABULARY) and loss.isfinite()
    with pytest.raises(ValueError, match="embed_ids has no 'segment'"):
        model(ids)
    assert model.generate(ids, **segment).shape == ids.shape


def test_random_subsets_are_equally_likely():
    allowed = torch.tensor([True, False, True, True, True, False]).expand(6000, -1)
    chosen = random_subset(allowed, torch.full((6000,), 2), seeded())
    assert (chosen.sum(1) == 2).all() and not (chosen & ~allowed).any()
    assert chosen.float().mean(0)[allowed[0]].tolist() == pytest.approx([0.5] * 4, abs=0.03)
    pairs = chosen[:, [0, 2, 3, 4]].long() @ torch.tensor([8, 4, 2, 1])
    assert (pairs.bincount()[[3, 5, 6, 9, 10, 12]] / 6000).tolist() == pytest.approx([1 / 6] * 6, abs=0.03)


def test_the_surest_are_revealed():
    sure = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.3, 0.1, 0.2, 0.9], [0.1, 0.2, 0.3, 0.4]])
    hidden = torch.tensor([[True, True, True, True], [True, False, True, True], [False, False, True, False]])
    stay = reveal(sure, hidden, torch.tensor([2, 7, 1]))
    # Of the second row one is revealed although all were to stay, of the third the only one.
    assert stay.tolist() == [[True, False, False, True], [True, False, True, False], [False] * 4]
    none = reveal(sure, torch.zeros_like(hidden), torch.tensor([2, 0, 1]))
    assert not none.any()


def test_saved_is_built(tmp_path):
    ids, _ = batch()
    for model in (
        masked_lm(replace_prob=0.8, random_token_prob=0.1, mask_prob="linear", **SPECIAL),
        NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN, steps=3, pad_token_id=PAD),
    ):
        model = model.eval()
        model.save(tmp_path)
        again, twin = xflash.load(tmp_path).eval(), copy.deepcopy(model)
        assert again.to_config() == model.to_config()
        expected = model(ids, generator=seeded())
        for other in (again, twin):
            found = other(ids, generator=seeded())
            assert (
                torch.equal(torch.as_tensor(found[0]), torch.as_tensor(expected[0]))
                if isinstance(found, tuple)
                else torch.equal(found, expected)
            )


class Plain(torch.nn.Module):
    """Each token for itself."""

    def __init__(self):
        super().__init__()
        self.num_tokens = VOCABULARY
        self.table = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=seeded()))

    def forward(self, ids, mask):
        return F.embedding(ids, self.table) * mask[..., None]


@pytest.mark.slow
def test_compiled_training():
    """Few graphs for every length; where chance decides nothing, the loss and the gradient are the eager ones."""
    net = Plain()
    model = masked_lm(net, mask_prob=1.0, replace_prob=1.0, random_token_prob=0.0, **SPECIAL).double()
    noisy = masked_lm(net, mask_prob="cosine", replace_prob=0.5, random_token_prob=0.4, **SPECIAL)
    ids, _ = batch()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(model, fullgraph=True, backend=counter)
    for n in (N, 19, 11):
        loss, expected = fast(ids[:, :n].contiguous()), model(ids[:, :n])
        laws.close(loss, expected, f"compiled at {n}")
        grads = [torch.autograd.grad(value, net.table)[0] for value in (loss, expected)]
        laws.close(*grads, f"compiled gradient at {n}")
    assert counter.frame_count <= 3
    again = torch.compile(noisy, fullgraph=True, backend="aot_eager", dynamic=True)
    assert again(ids).isfinite()


def test_the_names_of_x_transformers():
    net = encoder(max_seq_len=11)
    model = NonAutoregressiveWrapper(net, mask_id=HIDDEN, steps=4, schedule="cosine", no_replace_prob=0.2)
    assert model.net is net and model.masked.replace_prob == pytest.approx(0.7)
    ids = torch.randint(1, 20, (3, 11), generator=seeded())
    loss, ours, critic = model(ids, generator=seeded())
    assert loss is ours and critic is None and loss > 0
    expected = masked_lm(net, mask_prob="cosine", replace_prob=model.masked.replace_prob, random_token_prob=0.1)
    assert torch.equal(loss, expected(ids, generator=seeded()))
    loss.backward()
    assert model.generate().shape == (11,)
    made = model.generate(batch_size=3, start_temperature=2.0, filter_thres=0.7, generator=seeded())
    same = model.masked.generate(
        batch_size=3, steps=4, temperature=2.0, filter_logits_fn="top_k", filter_kwargs={"k": 7}, generator=seeded()
    )
    assert torch.equal(made, same)
    assert torch.equal(model.generate(ids=ids), ids)
    assert model.generate(2, filter_thres=1.0).shape == (2, 11)
