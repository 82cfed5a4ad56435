"""The masked language model: what is hidden, what is asked, what is filled in."""

import copy
import itertools
import math
import re

import laws
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import xflash
from xflash import Decoder, Encoder, MaskedLMWrapper, NonAutoregressiveWrapper, TransformerWrapper
from xflash.wrappers.hiding import SCHEDULES, random_subset, reveal

VOCABULARY, N, B = 23, 37, 5
HIDDEN, PAD, CLS, SEP = 22, 0, 20, 21


def encoder(cls=Encoder, num_tokens=VOCABULARY, dim=14, depth=1, **arguments):
    torch.manual_seed(0)
    stack = cls(dim=dim, depth=depth, heads=2, layers="attn ff", attn_dim_head=6, pos="rotary")
    return TransformerWrapper(num_tokens=num_tokens, attn_layers=stack, **arguments)


def masked_lm(net=None, **arguments):
    return MaskedLMWrapper(encoder() if net is None else net, **{"mask_token_id": HIDDEN, **arguments})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed=1, rows=B):
    """Rows of different lengths: CLS, ordinary tokens, SEP, padding."""
    ids = torch.randint(1, 20, (rows, N), generator=seeded(seed))
    lengths = torch.tensor([N, 20, 7, 3, 2])[:rows]
    ids[:, 0] = CLS
    ids[torch.arange(rows), lengths - 1] = SEP
    return ids.masked_fill(torch.arange(N) >= lengths[:, None], PAD), lengths


SPECIAL = {"pad_token_id": PAD, "mask_ignore_token_ids": (CLS, SEP)}


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
    counts = model.choose(ids, ids != PAD, seeded()).sum(1)
    assert counts.tolist() == [min(1, n - 2) for n in lengths.tolist()]


def test_the_mask_of_a_call_keeps_tokens_out():
    model = masked_lm(mask_prob=1.0)
    ids, lengths = batch()
    mask = torch.arange(N) < lengths[:, None]
    _, _, targets = model(ids, mask.long(), return_outputs=True)
    assert torch.equal(targets != -100, mask)
    _, both = masked_lm(pad_token_id=PAD).read(ids, torch.arange(N).expand(B, -1) > 0)
    assert torch.equal(both, mask & (torch.arange(N) > 0))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_share_that_is_drawn_for_each_row(schedule):
    model = masked_lm(mask_prob=schedule)
    ids = torch.randint(1, 20, (997, N), generator=seeded(1))
    counts = model.choose(ids, None, seeded()).sum(1)
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
    chosen = model.choose(ids, ids != PAD, generator)
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


class Told(torch.nn.Module):
    """Says token (place + 1), the surer the further to the right; notes how many places were hidden in each call."""

    def __init__(self):
        super().__init__()
        self.num_tokens, self.hidden = VOCABULARY, []

    def forward(self, ids, mask=None):
        self.hidden.append((ids == HIDDEN).sum(1).tolist())
        place = torch.arange(ids.shape[1])
        return (F.one_hot(place + 1, VOCABULARY) * (3.0 + place[:, None])).expand(len(ids), -1, -1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_of_decoding(schedule):
    net = Told()
    ids = torch.full((2, 12), HIDDEN)
    ids[1, 3:] = 5
    made = MaskedLMWrapper(net, mask_token_id=HIDDEN).generate(ids, steps=6, schedule=schedule, temperature=0)
    assert made.tolist() == [list(range(1, 13)), [1, 2, 3] + [5] * 9]
    share = {"linear": lambda t: 1 - t, "cosine": lambda t: math.cos(t * math.pi / 2)}[schedule]
    expected = [math.floor(share(step / 6) * 12 + 1e-4) for step in range(6)]
    assert [rows[0] for rows in net.hidden] == expected
    second = [rows[1] for rows in net.hidden]
    assert second[0] == 3 and all(b < a or a == b == 0 for a, b in itertools.pairwise(second))


def test_the_temperature_falls_to_zero():
    """The last call takes the likeliest token, however warm the first was."""
    model = MaskedLMWrapper(Told(), mask_token_id=HIDDEN)
    made = model.generate(batch_size=50, seq_len=12, steps=1, temperature=1000.0)
    assert (made == torch.arange(1, 13)).all()
    two = model.generate(batch_size=50, seq_len=12, steps=2, temperature=1000.0, generator=seeded())
    right = (two == torch.arange(1, 13)).float().mean().item()
    # Of twelve, cos(pi / 4) * 12 = 8 are left to the last call.
    assert right == pytest.approx((8 + 4 / 22) / 12, abs=0.03)


def test_how_sure_the_net_is_has_gumbel_noise():
    logits = torch.full((1, 20000, VOCABULARY), -1e4).index_fill(2, torch.tensor([7]), 0.0)
    drawn, sure = masked_lm().draw(logits, lambda x: x, 2.0, seeded())
    assert (drawn == 7).all()
    assert sure.mean().item() == pytest.approx(2 * 0.5772, abs=0.06)
    assert sure.std().item() == pytest.approx(2 * math.pi / 6**0.5, abs=0.06)
    assert (masked_lm().draw(logits, lambda x: x, 0.0, None)[1] == 0).all()


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_decoding_leaves_the_rest_alone(steps):
    """What is known stays, padding too; nothing special is ever drawn; the model is in its mode again."""
    model = masked_lm(**SPECIAL).train()
    ids, _ = batch()
    hide = (torch.rand(ids.shape, generator=seeded(2)) < 0.6) & ~torch.isin(ids, torch.tensor([PAD, CLS, SEP]))
    made = model.generate(ids.masked_fill(hide, HIDDEN), steps=steps, temperature=5.0, generator=seeded())
    assert torch.equal(made[~hide], ids[~hide])
    assert not torch.isin(made[hide], torch.tensor([HIDDEN, PAD, CLS, SEP])).any()
    assert model.training and model.net.training
    one = model.generate(ids[0].masked_fill(hide[0], HIDDEN), steps=steps, temperature=0)
    assert one.shape == (N,)


def test_decoding_without_chance_is_the_same_in_any_padding():
    model = laws.live(masked_lm(**SPECIAL))
    ids, lengths = batch()
    ids = ids.masked_fill((torch.arange(N) % 3 > 0) & (ids != PAD), HIDDEN)
    together = model.generate(ids, temperature=0, steps=5)
    for row, n in enumerate(lengths.tolist()):
        assert torch.equal(together[row, :n], model.generate(ids[row, :n], temperature=0, steps=5))
        assert (together[row, n:] == PAD).all()
    mask = torch.arange(N) < lengths[:, None]
    other = masked_lm(model.net, mask_ignore_token_ids=(PAD, CLS, SEP)).eval()
    made = other.generate(ids.masked_fill(~mask, HIDDEN), mask=mask, temperature=0, steps=5)
    assert torch.equal(made, together.masked_fill(~mask, HIDDEN))


def test_new_rows():
    model = masked_lm()
    assert model.generate(batch_size=3, seq_len=7, generator=seeded()).shape == (3, 7)
    assert model.generate(seq_len=7).shape == (1, 7)
    limited = masked_lm(encoder(max_seq_len=11))
    assert limited.generate(batch_size=2, filter_logits_fn="top_k", filter_kwargs={"k": 3}).shape == (2, 11)


def progressions(count, generator, length=7, modulus=7):
    """Rows that count up in ones or twos: a few tokens say all the others."""
    start = torch.randint(modulus, (count, 1), generator=generator)
    by = torch.randint(1, 3, (count, 1), generator=generator)
    return (start + by * torch.arange(length)) % modulus + 1


@pytest.fixture(scope="module")
def trained():
    """A small encoder after 200 steps on `progressions`, and its losses."""
    net = encoder(num_tokens=9, dim=36, depth=2)
    model = MaskedLMWrapper(net, mask_token_id=8, pad_token_id=0, mask_prob="cosine")
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 200)
    generator, losses = seeded(5), []
    for _ in range(200):
        loss = model(progressions(64, generator), generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_training_lowers_the_loss(trained):
    """A guess costs log(7) = 1.95 nats; many rows keep too little to be told from, so the loss stays high."""
    model, losses = trained
    assert losses[0] == pytest.approx(math.log(7), abs=0.4)
    assert max(losses[-20:]) < 1.25
    few = MaskedLMWrapper(model.net, mask_token_id=8, pad_token_id=0, mask_prob=0.15)
    with torch.no_grad():
        assert few(progressions(64, seeded(6)), generator=seeded(7)) < 0.1


def test_generate_fills_in_the_right_tokens(trained):
    """Two known tokens tell all others; a guess is right one time in seven."""
    model, _ = trained
    rows = progressions(97, seeded(8))
    lengths = torch.randint(5, 8, (97, 1), generator=seeded(9))
    real = torch.arange(7) < lengths
    known = random_subset(real, torch.full((97,), 3), seeded(10))
    ids = torch.where(known, rows, 8).masked_fill(~real, 0)
    made = model.generate(ids, steps=6, temperature=0)
    assert (made == rows)[real & ~known].float().mean().item() > 0.85
    assert (made[~real] == 0).all()


def test_generate_makes_rows_that_hold_together(trained):
    """From nothing at all: neighbours differ by one or by two, and by the same all along, in many different rows."""
    model, _ = trained
    made = model.generate(batch_size=64, seq_len=7, steps=7, generator=seeded(11))
    steps = made.diff(dim=1) % 7
    whole = (steps == 1).all(1) | (steps == 2).all(1)
    assert whole.float().mean().item() > 0.6
    assert len({tuple(row) for row in made[whole].tolist()}) > 7


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: masked_lm(3),
            TypeError,
            "net must be a model from token ids to logits such as TransformerWrapper, not 3",
        ),
        (
            lambda: masked_lm(encoder(Decoder)),
            ValueError,
            "TransformerWrapper is causal: it would guess a hidden token from those before it only; use an Encoder",
        ),
        (
            lambda: masked_lm(encoder(average_pool_embed=True)),
            ValueError,
            "TransformerWrapper pools its outputs (average_pool_embed=True): it tells no single tokens",
        ),
        (lambda: masked_lm(torch.nn.Embedding(2, 2)), TypeError, "num_tokens must be a whole number, not None"),
        (lambda: masked_lm(mask_token_id=23), ValueError, "mask_token_id must be below num_tokens=23, not 23"),
        (lambda: masked_lm(mask_token_id=-1), ValueError, "mask_token_id must be at least 0, not -1"),
        (lambda: masked_lm(num_tokens=9), ValueError, "mask_token_id must be below num_tokens=9, not 22"),
        (lambda: masked_lm(pad_token_id=1.0), TypeError, "pad_token_id must be a whole number, not 1.0"),
        (lambda: masked_lm(pad_token_id=22), ValueError, "mask_token_id and pad_token_id are both 22"),
        (lambda: masked_lm(mask_ignore_token_ids=3), TypeError, "mask_ignore_token_ids must be a tuple of ids, not 3"),
        (lambda: masked_lm(mask_ignore_token_ids=(99,)), ValueError, "mask_ignore_token_ids must be below num_tokens"),
        (lambda: masked_lm(mask_ignore_token_ids=tuple(range(22))), ValueError, "all 23 tokens are special ones"),
        (lambda: masked_lm(mask_prob=0), ValueError, "mask_prob must be above 0, not 0"),
        (lambda: masked_lm(mask_prob=1.5), ValueError, "mask_prob must be at most 1, not 1.5"),
        (lambda: masked_lm(mask_prob=None), TypeError, "mask_prob must be a number, not None"),
        (lambda: masked_lm(mask_prob="cosin"), ValueError, "mask_prob='cosin' is no schedule; did you mean 'cosine'?"),
        (lambda: masked_lm(replace_prob=-0.5), ValueError, "replace_prob must be at least 0, not -0.5"),
        (lambda: masked_lm(random_token_prob=2), ValueError, "random_token_prob must be at most 1, not 2"),
        (lambda: masked_lm(random_token_prob=0.2), ValueError, "replace_prob=0.9 and random_token_prob=0.2 are more"),
        (lambda: masked_lm(mask_probability=0.2), TypeError, "MaskedLMWrapper has no argument 'mask_probability'; did"),
        (lambda: masked_lm()(torch.ones(2, 3)), TypeError, "x must hold integer token ids, not torch.float32"),
        (lambda: masked_lm()([1, 2]), TypeError, "x must be a tensor of integer token ids, not [1, 2]"),
        (lambda: masked_lm()(torch.ones(3).long()), ValueError, "x must be (batch, tokens) with at least one token"),
        (lambda: masked_lm()(torch.full((1, 2), 23)), ValueError, "token ids must be from 0 to 22, but they go from"),
        (lambda: masked_lm()(batch()[0], torch.ones(2, 3).bool()), ValueError, "mask has shape (2, 3)"),
        (lambda: masked_lm()(batch()[0], generator=7), TypeError, "generator must be a torch.Generator, not 7"),
        (
            lambda: masked_lm(encoder(logits_dim=4))(batch()[0]),
            ValueError,
            "is not in the vocabulary of 4 tokens (0 to 3)",
        ),
        (lambda: masked_lm().generate(), ValueError, "generate needs ids, or seq_len: the model has no max_seq_len"),
        (
            lambda: masked_lm().generate(batch()[0], seq_len=3),
            ValueError,
            "ids already say how many rows and tokens there are: leave out batch_size and seq_len",
        ),
        (lambda: masked_lm().generate(seq_len=0), ValueError, "seq_len must be at least 1, not 0"),
        (lambda: masked_lm().generate(seq_len=3, batch_size=0), ValueError, "batch_size must be at least 1, not 0"),
        (lambda: masked_lm().generate(seq_len=3, steps=0), ValueError, "steps must be at least 1, not 0"),
        (lambda: masked_lm().generate(seq_len=3, temperature=-1), ValueError, "temperature must be at least 0, not -1"),
        (lambda: masked_lm().generate(seq_len=3, schedule=2), TypeError, "schedule must be the name of a schedule"),
        (lambda: masked_lm().generate(seq_len=3, schedule="lin"), ValueError, "schedule='lin' is no schedule"),
        (lambda: masked_lm().generate(seq_len=3, filter_logits_fn="topk"), ValueError, "unknown filter 'topk'"),
        (lambda: masked_lm().generate(seq_len=3, generator=7), TypeError, "generator must be a torch.Generator, not 7"),
        (lambda: masked_lm().generate(torch.ones(2, 2, 2).long()), ValueError, "x must be (batch, tokens)"),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN, self_cond=True),
            TypeError,
            "NonAutoregressiveWrapper has no argument 'self_cond'",
        ),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN, no_replace_prob=0.95),
            ValueError,
            "no_replace_prob=0.95 and random_token_prob=0.1 are more than 1",
        ),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN, schedule="cos"),
            ValueError,
            "schedule='cos' is no schedule",
        ),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN).generate(filter_thres=2),
            ValueError,
            "filter_thres must be at most 1, not 2",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
