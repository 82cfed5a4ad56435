"""XTransformer: loss, generation, padding, tying, flags of both sides, and the README snippets for encoder-decoders."""

import copy
import io
import itertools

import laws
import pytest
import torch
import torch.nn.functional as F

import xflash
from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, XTransformer
from xflash.wrappers.xtransformer import drop_tokens

B, C, N, DIM, ENC, DEC, START = 3, 11, 7, 24, 19, 13, 1
SMALL = {
    "dim": DIM, "enc_num_tokens": ENC, "enc_depth": 1, "enc_heads": 2, "enc_max_seq_len": C,
    "dec_num_tokens": DEC, "dec_depth": 2, "dec_heads": 3, "dec_max_seq_len": 17,
}  # fmt: skip
HEADS = {"enc_attn_dim_head": 6, "dec_attn_dim_head": 5, "dec_cross_attn_dim_head": 7}
MODELS = {
    "as in x-transformers": HEADS,
    "flash to cross_gau": {
        "enc_layers": "flash", "enc_flash_group_size": 5, "enc_flash_query_key_dim": 10, "enc_shift_tokens": 1,
        "enc_pos": "rotary", "dec_layers": "flash cross_gau", "dec_flash_group_size": 3, "dec_flash_query_key_dim": 8,
        "dec_cross_gau_query_key_dim": 9, "dec_pos": "rotary", "dec_num_memory_tokens": 2,
    },
    "wrapper arguments": {
        **HEADS, "enc_scaled_sinu_pos_emb": True, "enc_num_memory_tokens": 2, "enc_emb_dim": 10,
        "enc_l2norm_embed": True, "dec_use_abs_pos_emb": False, "dec_rotary_pos_emb": True, "dec_post_emb_norm": True,
        "dec_tie_embedding": True, "dec_shift_tokens": 1,
    },
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)


def build(name="as in x-transformers", **flags):
    torch.manual_seed(0)
    return laws.live(XTransformer(**{**SMALL, **MODELS[name], **flags}))


def ids(n, v, seed=1):
    return torch.randint(2, v, (B, n), generator=torch.Generator().manual_seed(seed))


SRC, TGT = ids(C, ENC), torch.cat((torch.full((B, 1), START), ids(N - 1, DEC, 2)), 1)
LENGTHS = torch.tensor([C, 6, 3])
MASK = torch.arange(C) < LENGTHS[:, None]
FRONT = torch.randn(B, 4, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
BEGIN = torch.full((B, 1), START)


@every_model
def test_the_loss_is_the_cross_entropy_of_the_next_tokens(name):
    model = build(name)
    context = model.encoder(SRC, MASK)
    logits = model.decoder.net(TGT[:, :-1], context=context, context_mask=MASK)
    expected = F.cross_entropy(logits.flatten(0, 1), TGT[:, 1:].flatten())
    loss, outputs = model(SRC, TGT, mask=MASK, return_outputs=True)
    laws.close(loss, expected, "loss")
    laws.close(outputs, logits, "logits")
    laws.close(model(SRC, TGT, MASK.int()), expected, "a mask of integers, by position")
    model.train()(SRC, TGT, mask=MASK).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without


@every_model
def test_a_padded_source_equals_the_unpadded_one(name):
    model = build(name)
    holes = torch.rand(B, C, generator=torch.Generator().manual_seed(5)) < 0.6
    for mask in (MASK, MASK.flip(1), holes):
        _, logits = model(SRC, TGT, mask=mask, return_outputs=True)
        made = model.generate(SRC, BEGIN, 5, mask=mask, temperature=0.0)
        for row in range(B):
            alone = SRC[row : row + 1, mask[row]]
            laws.close(model(alone, TGT[row : row + 1], return_outputs=True)[1][0], logits[row], f"row {row}")
            assert torch.equal(model.generate(alone, BEGIN[:1], 5, temperature=0.0)[0], made[row])


@every_model
def test_a_padded_target_equals_the_unpadded_one(name):
    model, lengths = build(name), torch.tensor([N, 4, 2])
    mask = torch.arange(N) < lengths[:, None]
    loss, logits = model(SRC, TGT, mask=MASK, tgt_mask=mask, return_outputs=True)
    total = 0.0
    for row, n in enumerate(lengths.tolist()):
        one, alone = model(SRC[row : row + 1, : LENGTHS[row]], TGT[row : row + 1, :n], return_outputs=True)
        laws.close(logits[row, : n - 1], alone[0], f"row {row}")
        total = total + one * (n - 1)
    laws.close(loss, total / (lengths - 1).sum(), "mean over real targets")
    ignored = TGT.masked_fill(~mask, -100)
    laws.close(model(SRC, ignored, mask=MASK), loss, "ignore_index in place of a mask")
    laws.close(model(SRC, TGT, mask=MASK, labels=ignored), loss, "labels")


def greedy(model, steps, src=SRC, mask=MASK, front=None, start=BEGIN):
    """The likeliest token of whole forwards, again and again."""
    tgt = start
    context, real = model.encode(src, mask, src_prepend_embeds=front)
    for _ in range(steps):
        tgt = torch.cat((tgt, model.decoder.net(tgt, context=context, context_mask=real)[:, -1:].argmax(-1)), 1)
    return tgt[:, start.shape[1] :]


@every_model
def test_greedy_is_the_argmax_of_whole_forwards(name):
    model = build(name)
    made = model.generate(SRC, BEGIN, 9, mask=MASK, temperature=0.0)
    assert torch.equal(made, greedy(model, 9))
    assert torch.equal(model.generate(SRC, BEGIN, 9, mask=MASK, temperature=0.0, cache_kv=False), made)
    assert torch.equal(model.generate(SRC, TGT[:, :3], 6, MASK, temperature=0.0), greedy(model, 6, start=TGT[:, :3]))
    assert torch.equal(torch.stack(list(model.stream(SRC, BEGIN, 9, MASK, temperature=0.0)), 1), made)
    assert torch.equal(model.beam_search(SRC, BEGIN, 9, 1, mask=MASK), made)


def test_starts_of_different_lengths():
    model, starts = build(), [TGT[0, :3], TGT[1, :1], TGT[2, :5]]
    made = model.generate(SRC, starts, 6, MASK, temperature=0.0)
    lengths = torch.tensor([3, 1, 5])
    again = model.generate(SRC, TGT[:, :5], 6, MASK, temperature=0.0, prompt_lens=lengths)
    masked = model.generate(SRC, TGT[:, :5], 6, MASK, temperature=0.0, tgt_mask=torch.arange(5) < lengths[:, None])
    assert torch.equal(made, again) and torch.equal(made, masked)
    for row, start in enumerate(starts):
        expected = greedy(model, 6, SRC[row : row + 1], MASK[row : row + 1], start=start[None])
        assert torch.equal(made[row], expected[0])
    one = model.generate(SRC[:1], TGT[0, :3], 6, MASK[:1], temperature=0.0)
    assert torch.equal(one, made[0])


@every_model
def test_the_encoder_runs_once(name):
    model, calls = build(name).train(), []
    model.encoder.register_forward_hook(lambda module, given, out: calls.append(module.training))
    model.generate(SRC, BEGIN, 6, MASK)
    model.beam_search(SRC, BEGIN, 6, mask=MASK)
    assert calls == [False, False]
    assert model.training and model.encoder.training and model.decoder.net.training


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_beam_of_all_sequences_is_the_best_there_is(length_penalty):
    v, n, end = 5, 3, 4
    model = build(dec_num_tokens=v, enc_num_tokens=ENC)
    best, score = model.beam_search(
        SRC, BEGIN, n, beams=v**n, mask=MASK, eos_token=end, length_penalty=length_penalty, return_beams_and_scores=True
    )
    every = [s for k in range(1, n + 1) for s in itertools.product(range(v), repeat=k)]
    # Whole sequences: they end with the end token, or at the limit without one before.
    every = [s for s in every if end not in s[:-1] and (len(s) == n or s[-1] == end)]
    for row in range(B):
        beside = {"context": model.encode(SRC[row : row + 1, : LENGTHS[row]]).context}
        found = {}
        for s in every:
            tgt = torch.tensor([[START, *s]])
            logits = model.decoder.net(tgt[:, :-1], **beside)
            total = logits.log_softmax(-1).gather(2, tgt[:, 1:, None]).sum().item()
            found[s] = total / len(s) ** length_penalty
        top = max(found, key=found.get)
        assert tuple(best[0, row].tolist()[: len(top)]) == top
        assert abs(score[0, row].item() - found[top]) < 1e-9
    plain = model.beam_search(SRC, BEGIN, n, v**n, MASK, eos_token=end, length_penalty=length_penalty)
    assert torch.equal(plain, best[0][:, : plain.shape[1]])


def test_what_follows_the_end_token_is_padding():
    model = build(pad_value=2)
    made = model.generate(SRC, BEGIN, 12, MASK, eos_token=5, generator=torch.Generator().manual_seed(1))
    for row in made.tolist():
        if 5 in row:
            assert set(row[row.index(5) + 1 :]) <= {2}
    assert model.decoder.pad_value == 2


@every_model
def test_embeddings_in_front_carry_no_position_and_do_not_count(name):
    """A source that is as long as it may be, behind embeddings: what the encoder's stack gives for both."""
    model, seen = build(name), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    loss, logits = model(SRC, TGT, mask=MASK, src_prepend_embeds=FRONT, return_outputs=True)
    assert (logits - model(SRC, TGT, mask=MASK, return_outputs=True)[1]).abs().max() > 1e-6
    laws.close(model(SRC, TGT, MASK, None, FRONT), loss, "by position")
    everything = torch.ones_like(MASK)
    laws.close(
        model(SRC, TGT, src_prepend_embeds=FRONT), model(SRC, TGT, everything, src_prepend_embeds=FRONT), "no mask"
    )
    made = model.generate(SRC, BEGIN, 6, mask=MASK, src_prepend_embeds=FRONT, temperature=0.0)
    assert torch.equal(made, greedy(model, 6, front=FRONT))
    assert torch.equal(model.beam_search(SRC, BEGIN, 6, 1, MASK, src_prepend_embeds=FRONT), made)
    poisoned = FRONT.masked_fill(~seen[..., None], float("nan"))
    beside = {"src_prepend_embeds": poisoned, "src_prepend_mask": seen}
    for mask in (MASK, None):
        partly = model(SRC, TGT, mask, **beside, return_outputs=True)[1]
        for row in range(B):
            src = SRC[row : row + 1] if mask is None else SRC[row : row + 1, : LENGTHS[row]]
            front = FRONT[row : row + 1, seen[row]]
            alone = model(src, TGT[row : row + 1], src_prepend_embeds=front, return_outputs=True)[1]
            laws.close(partly[row], alone[0], f"row {row}")
    assert model.generate(SRC, BEGIN, 3, MASK, **beside).shape == (B, 3)


def test_an_attention_mask_is_the_encoders():
    model = build()
    causal = torch.ones(C, C).bool().tril()
    laws.close(model.encode(SRC, None, causal).context, model.encoder(SRC, attn_mask=causal), "encode")
    short = model.encode(SRC[:, :4], None, causal[:4, :4]).context
    laws.close(model.encode(SRC, None, causal).context[:, :4], short, "causal")
    made = model.generate(SRC, BEGIN, 4, attn_mask=causal, temperature=0.0)
    assert made.shape == (B, 4)


def test_dropping_tokens_keeps_a_share_of_the_real_ones():
    torch.manual_seed(0)
    context = torch.arange(B * 20.0).reshape(B, 20, 1).expand(-1, -1, 5)
    mask = torch.arange(20).flip(0) < torch.tensor([[20], [9], [0]])
    for p, wanted in ((0.3, [14, 6, 0]), (0.9, [2, 1, 0]), (0.01, [20, 9, 0])):
        kept, real = drop_tokens(context, mask, p)
        assert kept.shape[:2] == real.shape == (B, max(1, round(20 * (1 - p))))
        assert real.sum(1).tolist() == wanted
        for row in range(B):
            held = kept[row, real[row], 0]
            assert (held.diff() > 0).all() and set(held.tolist()) <= set(context[row, mask[row], 0].tolist())
        kept, none = drop_tokens(context, None, p)
        assert none is None and kept.shape[1] == max(1, round(20 * (1 - p)))
        assert (kept[..., 0].diff(dim=1) > 0).all()
    counts = torch.zeros(20)
    for _ in range(300):
        counts[drop_tokens(context[:1], None, 0.5)[0][0, :, 0].long()] += 1
    assert ((counts / 300 - 0.5).abs() < 0.15).all()


def test_tokens_are_dropped_in_training_only_by_torchs_generator():
    model, plain = build(cross_attn_tokens_dropout=0.5), build()
    plain.load_state_dict(model.state_dict())
    laws.close(model(SRC, TGT, MASK), plain(SRC, TGT, MASK), "eval")
    model.train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(SRC, TGT, MASK).item())
    assert losses[0] == losses[1] != losses[2]
    assert abs(losses[0] - plain(SRC, TGT, MASK).item()) > 1e-6


def test_one_embedding_for_both_sides(tmp_path):
    flags = {"tie_token_emb": True, "enc_num_tokens": DEC}
    model, src = build(**flags), SRC % DEC
    loss = model(src, TGT, MASK)
    assert model.encoder.embedding.token_emb is model.decoder.net.embedding.token_emb
    model.save(tmp_path)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = {
        "loaded": xflash.load(tmp_path).eval(),
        "copied": copy.deepcopy(model),
        "pickled": torch.load(buffer, weights_only=False),
    }
    for what, other in copies.items():
        assert torch.equal(other(src, TGT, MASK), loss), what
        assert other.encoder.embedding.token_emb.weight is other.decoder.net.embedding.token_emb.weight, what
        with torch.no_grad():
            other.encoder.embedding.token_emb.weight.add_(1)
        assert torch.equal(model(src, TGT, MASK), loss), f"{what} shares with the original"
    untied = build(enc_num_tokens=DEC)
    size = {net: sum(p.numel() for p in net.parameters()) for net in (model, untied)}
    assert size[untied] - size[model] == DEC * DIM


@every_model
def test_saved_as_built(name, tmp_path):
    model = build(name, ignore_index=-7, pad_value=3, cross_attn_tokens_dropout=0.25)
    config = model.to_config()
    again = xflash.from_config(config)
    assert again.to_config() == config
    assert config["class"] == "XTransformer" and config["dec_num_tokens"] == DEC and config["pad_value"] == 3
    assert (again.decoder.ignore_index, again.decoder.pad_value, again.cross_attn_tokens_dropout) == (-7, 3, 0.25)
    model.save(tmp_path)
    assert torch.equal(xflash.load(tmp_path).eval()(SRC, TGT, MASK), model(SRC, TGT, MASK))


def test_flags_reach_the_side_they_name():
    model = build("wrapper arguments")
    encoder, decoder = model.encoder, model.decoder.net
    assert len(encoder.attn_layers.memory_tokens) == 2 and decoder.attn_layers.memory_tokens is None
    assert encoder.embedding.token_emb.l2norm and not decoder.embedding.token_emb.l2norm
    assert type(encoder.embedding.pos_emb).__name__ == "ScaledSinusoidal" and decoder.embedding.pos_emb is None
    assert (
        encoder.embedding.project_emb is not None
        and encoder.embedding.post_emb_norm is None
        and decoder.embedding.post_emb_norm is not None
    )
    assert encoder.to_logits is None and decoder.tie_embedding
    table = model.flag_table()
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert lines["enc_attn_dim_head"].split()[1:3] == ["6", "*"] and lines["dec_attn_dim_head"].split()[1:3] == [
        "5",
        "*",
    ]
    assert lines["dec_cross_attn_dim_head"].split()[1:3] == ["7", "*"]
    assert lines["dim"].split()[1] == "24" and "enc_dim" not in lines


def test_the_decoder_alone_is_a_model():
    """Beam search, other losses: whatever wraps a model can wrap the decoder, given the context."""
    model = build()
    context, mask = model.encode(SRC, MASK)
    wrapper = AutoregressiveWrapper(model.decoder.net).eval()
    made = wrapper.generate(BEGIN, 5, temperature=0.0, context=context, context_mask=mask)
    assert torch.equal(made, model.generate(SRC, BEGIN, 5, MASK, temperature=0.0))


README = {
    "dim": 512, "enc_num_tokens": 256, "enc_depth": 6, "enc_heads": 8, "enc_max_seq_len": 1024,
    "dec_num_tokens": 256, "dec_depth": 6, "dec_heads": 8, "dec_max_seq_len": 1024,
}  # fmt: skip


def shrunk(flags, **size):
    return {**flags, "dim": 32, "enc_depth": 1, "dec_depth": 1, "enc_heads": 2, "dec_heads": 2, **size}


def test_the_encoder_decoder_of_the_readme():
    with torch.device("meta"):
        assert XTransformer(**README, tie_token_emb=True).encoder.attn_layers.layout == "(attn ff) x 6"
    model = XTransformer(**shrunk(README), tie_token_emb=True)
    src, tgt = torch.randint(0, 256, (1, 1024)), torch.randint(0, 256, (1, 1024))
    model(src, tgt, mask=torch.ones_like(src).bool()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_pali_of_the_readme():
    """64 image embeddings in front of 1,024 tokens, which is all that enc_max_seq_len=1024 allows."""
    pali = XTransformer(**shrunk(README))
    images, prompt = torch.randn(1, 64, 32, requires_grad=True), torch.randint(0, 256, (1, 1024))
    loss = pali(prompt, torch.randint(0, 256, (1, 9)), mask=torch.ones(1, 1024).bool(), src_prepend_embeds=images)
    loss.backward()
    assert images.grad.abs().sum() > 0
    with torch.no_grad():
        made = pali.generate(prompt, torch.zeros(1, 1).long(), 3, src_prepend_embeds=images)
    assert made.shape == (1, 3)


def test_captioning_of_the_readme():
    decoder = TransformerWrapper(
        num_tokens=200, max_seq_len=64, attn_layers=Decoder(dim=32, depth=1, heads=2, cross_attend=True)
    )
    encoded, caption = torch.randn(1, 16, 32), torch.randint(0, 200, (1, 64))
    assert decoder(caption, context=encoded).shape == (1, 64, 200)


def test_an_encoder_without_a_head():
    encoder = TransformerWrapper(
        num_tokens=31, max_seq_len=9, attn_layers=Encoder(dim=24, depth=1), return_only_embed=True
    )
    x = torch.randint(31, (2, 9))
    assert torch.equal(encoder(x), encoder(x, return_embeddings=True)) and encoder(x).shape == (2, 9, 24)
    assert not [name for name, _ in encoder.named_parameters() if "logits" in name]
    with pytest.raises(TypeError, match="return_only_embed must be True or False, not 1"):
        TransformerWrapper(num_tokens=31, max_seq_len=9, attn_layers=Encoder(dim=24, depth=1), return_only_embed=1)
