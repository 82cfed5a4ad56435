"""Settings of models that are right alone, together: the same numbers, or a sentence."""

import pytest
import torch
from laws import close

from xflash import (
    AttentionPool,
    AutoregressiveWrapper,
    ContinuousAutoregressiveWrapper,
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    FLASHTransformer,
    MaskedLMWrapper,
    MultiInputTransformerWrapper,
    SegmentWrapper,
    TransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
    XValAutoregressiveWrapper,
    XValTransformerWrapper,
)
from xflash.wrappers.rebuild import rebuild

V, D = 11, 10
IDS = torch.randint(0, V, (2, 7), generator=torch.Generator().manual_seed(3))
EXPERTS = {"layers": "attn moe", "moe_experts": 3, "moe_dim": 5, "moe_balance_loss": 3.0}


def stack(kind=Decoder, **flags):
    torch.manual_seed(1)
    return kind(**{"dim": D, "depth": 1, "heads": 2, "attn_dim_head": 4, "pos": "rotary", **flags})


def model(layers=None, **arguments):
    return TransformerWrapper(num_tokens=V, attn_layers=layers or stack(), **arguments).double().eval()


def test_a_cache_has_seen_what_stood_in_front():
    net, front = model(), torch.randn(2, 3, D, dtype=torch.float64)
    _, state = net(IDS[:, :5], prepend_embeds=front, return_intermediates=True)
    close(net(IDS, cache=state, prepend_embeds=front), net(IDS, prepend_embeds=front)[:, -2:], "in front")
    begun = torch.tensor([0, 2])
    _, state = net(IDS[:, :6], seq_start_pos=begun, return_intermediates=True)
    logits, after = net(
        IDS[:, 6:], cache=state, seq_start_pos=begun, input_not_include_cache=True, return_intermediates=True
    )
    close(logits, net(IDS, seq_start_pos=begun)[:, -1:], "padded on the left")
    assert after.length.tolist() == [7, 5]


def test_tokens_of_a_model_would_see_hidden_keys():
    hidden = torch.ones(2, 7, dtype=torch.bool)
    for net, who in (
        (model(stack(Encoder), num_memory_tokens=2), "memory"),
        (model(stack(Encoder), use_cls_token=True), "class"),
    ):
        with pytest.raises(ValueError, match=f"the model's {who} tokens see all of them: give mask"):
            net(IDS, self_attn_kv_mask=hidden)


def test_an_ignored_number_is_no_target():
    net = XValTransformerWrapper(num_tokens=V, numerical_token_id=3, attn_layers=stack())
    loss, count = XValAutoregressiveWrapper(net, ignore_index=3)(
        torch.full((1, 6), 3), torch.randn(1, 6), return_count=True
    )
    assert loss == 0 and count == 0
    with pytest.raises(ValueError, match="the net gives logits of 2 heads, but a loss is of one"):
        XValAutoregressiveWrapper(
            XValTransformerWrapper(num_tokens=V, numerical_token_id=3, attn_layers=stack(), num_output_heads=2)
        )


def test_models_of_all_tokens_give_the_layers_own_loss():
    numbers = XValTransformerWrapper(num_tokens=V, numerical_token_id=3, attn_layers=stack(**EXPERTS)).double()
    x_num = torch.randn(2, 7).double()
    trainer = XValAutoregressiveWrapper(numbers)
    own = numbers(IDS[:, :-1], x_num[:, :-1], return_auxiliary_loss=True)[-1]
    close(trainer.train()(IDS, x_num), trainer.eval()(IDS, x_num) + own, "numbers")
    several = MultiInputTransformerWrapper(num_tokens={"a": V}, attn_layers=stack(**EXPERTS)).double()
    close(
        several({"a": IDS}, return_auxiliary_loss=True)[-1],
        several.step({"a": IDS}, return_auxiliary_loss=True)[-1],
        "several",
    )


def test_the_layers_own_loss_is_not_weighed_by_a_schedule():
    net = model(stack(Encoder, **EXPERTS))
    trainer = MaskedLMWrapper(net, mask_token_id=V - 1, mask_prob="cosine", mdlm_weights=True)
    seen: list = []
    net.attn_layers.register_forward_hook(lambda *call: seen.append(call[-1]))
    for seed in range(3):
        losses = []
        for way in (True, False):
            losses.append(trainer.train(way)(IDS, generator=torch.Generator().manual_seed(seed)))
        # The schedule's weights are float32.
        assert (losses[0] - losses[1] - seen[-2][-1]).abs() < 1e-6


def test_gradients_reach_back_through_memories_of_other_layers():
    def gradients(steps: int) -> torch.Tensor:
        net = model(stack(depth=2), max_mem_len=6, max_seq_len=4, shift_mem_down=1)
        XLAutoregressiveWrapper(net, tbptt_steps=steps)(torch.cat((IDS, IDS), 1)).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    assert (gradients(1) - gradients(3)).abs().max() > 1e-3


def test_what_cannot_meet_is_refused():
    sides = {f"{side}_{k}": v for side in ("enc", "dec") for k, v in {"num_tokens": V, "depth": 1, "heads": 2}.items()}
    with pytest.raises(ValueError, match="tie_token_emb=True gives the decoder the encoder's embedding"):
        XTransformer(
            dim=D,
            **sides,
            enc_max_seq_len=9,
            dec_max_seq_len=9,
            dec_token_emb=torch.nn.Embedding(V, D),
            tie_token_emb=True,
        )
    with pytest.raises(TypeError, match="makes logits of the 20 rows of the token embedding, but num_tokens is 11"):
        model(token_emb=torch.nn.Embedding(20, D), tie_embedding=True)(IDS)
    with pytest.raises(ValueError, match="those with windows of their own have memories of unlike lengths"):
        model(stack(layers="attn attn(window=3) attn"), max_mem_len=6, shift_mem_down=1)
    shared = stack(depth=2)
    state = model(shared, max_mem_len=4)(IDS, return_mems=True)[1]
    model(shared, max_mem_len=4, shift_mem_down=1)
    with pytest.raises(ValueError, match="the state was made by another stack"):
        model(shared, max_mem_len=4)(IDS, mems=state)


def test_columns_said_in_another_way_are_rebuilt():
    kept = {"dim": D, "heads": 2, "layers": "attn ff"}
    assert rebuild(Decoder(depth=2, sandwich_coef=1, **kept), custom_layers="attn ff").model.layout == "attn ff"
    for change in ({"layers": "attn"}, {"depth": 2}):
        assert rebuild(Decoder(depth=1, layers_execute_order=(0, 1, 0), **kept), **change).kept


def test_a_join_that_all_layers_say_has_its_last_norm():
    for said in ({"layers": "attn(join=resi_dual) ff(join=resi_dual)"}, {"layers": "attn ff", "join": "resi_dual"}):
        assert Decoder(dim=D, depth=1, heads=2, norm_place="post", **said).final_norm is not None


def test_what_has_no_step_says_so_when_it_is_built():
    for net in (model(looped=True), model(average_pool_embed=True)):
        with pytest.raises(ValueError, match="has no step"):
            net.compile_step()
    with pytest.raises(ValueError, match=r"looped=True has no step: .* \(generate does without one"):
        SegmentWrapper(model(looped=True), 4)


def test_generation_goes_through_a_stack_as_often_as_told():
    trainer = AutoregressiveWrapper(model(looped=True, max_looped_steps=4))
    made = [trainer.generate(IDS, 3, cache_kv=False, temperature=0, **told) for told in ({}, {"looped_steps": 4})]
    assert made[0].equal(made[1])
    with pytest.raises(ValueError, match="was built without looped=True"):
        AutoregressiveWrapper(model()).generate(IDS, 3, cache_kv=False, looped_steps=2)


def test_hidden_keys_are_of_whole_sequences():
    with pytest.raises(ValueError, match="self_attn_kv_mask is of whole sequences"):
        model()(IDS, self_attn_kv_mask=torch.ones(2, 7, dtype=torch.bool), return_intermediates=True)


def test_arguments_that_are_said_twice_or_name_nobody():
    with pytest.raises(ValueError, match="attn_kwargs has 'heads', which is an argument of its own: give it there"):
        AttentionPool(dim=8, attn_kwargs={"heads": 4})
    with pytest.raises(ValueError, match="amateur_model is an empty list: give a model, several, or None"):
        AutoregressiveWrapper(model()).generate(IDS, 3, amateur_model=[])
    with pytest.raises(ValueError, match="sees what it is to predict: build it with causal=True"):
        AutoregressiveWrapper(FLASHTransformer(num_tokens=V, dim=D, depth=1))


def test_heads_that_are_turned_are_those_that_latents_leave():
    latents = {"heads": 4, "attn_dim_latent_kv": 5, "attn_latent_rope_subheads": 1}
    with pytest.raises(ValueError, match="rotary_num_heads=2, but no layer has more than 1 heads"):
        stack(**latents, rotary_num_heads=2)


def test_rows_of_equal_weight_keep_it_beside_weights_of_their_frames():
    layers = stack()
    net = ContinuousTransformerWrapper(dim_in=3, dim_out=3, attn_layers=layers)
    trainer = ContinuousAutoregressiveWrapper(net, equal_loss_weight_batch=True)
    x, weights = torch.randn(2, 5, 3), torch.ones(2, 5)
    weights[0] = 0.25
    assert torch.allclose(trainer(x, loss_weights=weights), trainer(x))
    smooth = XValAutoregressiveWrapper(
        XValTransformerWrapper(num_tokens=V, numerical_token_id=3, attn_layers=stack()), label_smoothing=0.2
    )
    assert smooth(IDS, torch.randn(2, 7)).isfinite()


def test_a_memory_behind_memory_tokens_and_what_adds_up_in_between():
    """What stands between memory tokens and a memory is given up; a window gives the memory tokens up too."""
    said = "attn_scores has 'forget_by_query', which adds up what .*, but of a state that is shortened"
    fades = {"attn_scores": "forget_by_query", "layers": "attn"}
    for where in ({"num_memory_tokens": 2}, {}):
        held = {} if where else {"num_memory_tokens": 2}
        with pytest.raises(ValueError, match=said):
            model(stack(**fades, **held), max_mem_len=4, **where)
    whole = stack(**fades, num_memory_tokens=2)
    _, state = whole.step(torch.randn(2, 5, D))
    with pytest.raises(ValueError, match=said):
        whole.shorten(state, 3)
    model(stack(**fades, attn_window=3), max_mem_len=4, num_memory_tokens=2)
    model(stack(**fades), max_mem_len=4)
