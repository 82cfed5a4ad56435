"""An example for each wrapper: the lines that build it and call it."""

__all__ = ["EXAMPLES"]

NET = "net = TransformerWrapper(num_tokens=256, max_seq_len=64, attn_layers=Decoder(dim=64, depth=2))"
READER = NET.replace("Decoder", "Encoder")
XVAL = (
    "XValTransformerWrapper(num_tokens=9, numerical_token_id=8, max_seq_len=32, attn_layers=Decoder(dim=64, depth=2))"
)

EXAMPLES = {
    "AttentionPool": """
model = AttentionPool(dim=64, num_pooled_tokens=4, heads=4, dim_head=16)
x = torch.randn(2, 16, 64)
print(model(x).shape)  # torch.Size([2, 4, 64])
""",
    "AutoregressiveWrapper": f"""
{NET}
model = AutoregressiveWrapper(net)
print(model.generate(torch.randint(256, (2, 5)), 8).shape)  # torch.Size([2, 8])
""",
    "BlockRecurrentTransformer": """
model = BlockRecurrentTransformer(num_tokens=256, dim=64, depth=2, block_width=8, max_seq_len=16)
ids = torch.randint(256, (2, 16))
print(model(ids)[0].shape)  # torch.Size([2, 16, 256])
""",
    "ContinuousAutoregressiveWrapper": """
net = ContinuousTransformerWrapper(dim_in=7, dim_out=7, max_seq_len=64, attn_layers=Decoder(dim=64, depth=2))
model = ContinuousAutoregressiveWrapper(net)
print(model.generate(torch.randn(2, 3, 7), 8).shape)  # torch.Size([2, 8, 7])
""",
    "ContinuousTransformerWrapper": """
model = ContinuousTransformerWrapper(dim_in=7, dim_out=10, max_seq_len=64, attn_layers=Encoder(dim=64, depth=2))
x = torch.randn(2, 16, 7)
print(model(x).shape)  # torch.Size([2, 16, 10])
""",
    "RecurrentTrainerWrapper": """
net = BlockRecurrentTransformer(num_tokens=256, dim=64, depth=2, block_width=8, max_seq_len=16)
model = RecurrentTrainerWrapper(net)
print(model(torch.randint(256, (2, 41))).shape)  # torch.Size([])
""",
    "FLASH": """
model = FLASH(dim=64, group_size=8, causal=True)
x = torch.randn(2, 16, 64)
print(model(x).shape)  # torch.Size([2, 16, 64])
""",
    "GAU": """
model = GAU(dim=64, query_key_dim=32, causal=True)
x = torch.randn(2, 16, 64)
print(model(x).shape)  # torch.Size([2, 16, 64])
""",
    "FLASHTransformer": """
model = FLASHTransformer(num_tokens=256, dim=64, depth=2, group_size=8, causal=True)
ids = torch.randint(256, (2, 16))
print(model(ids).shape)  # torch.Size([2, 16, 256])
""",
    "MaskedLMWrapper": f"""
{READER}
model = MaskedLMWrapper(net, mask_token_id=255)
print(model(torch.randint(255, (2, 16))).shape)  # torch.Size([])
""",
    "MultiInputTransformerWrapper": """
model = MultiInputTransformerWrapper(num_tokens={"a": 12, "b": 16}, max_seq_len=9, attn_layers=Decoder(dim=64, depth=2))
ids = {"a": torch.randint(12, (2, 9)), "b": torch.randint(16, (2, 9))}
print(model(ids)["b"].shape)  # torch.Size([2, 9, 16])
""",
    "NonAutoregressiveWrapper": f"""
{READER}
model = NonAutoregressiveWrapper(net, mask_id=255, steps=4)
print(model.generate(batch_size=2).shape)  # torch.Size([2, 64])
""",
    "RecurrentMemoryWrapper": f"""
{NET}
model = RecurrentMemoryWrapper(net, num_memory_tokens=4, segment_len=8)
print(model(torch.randint(256, (2, 41))).shape)  # torch.Size([2, 41, 256])
""",
    "SegmentWrapper": f"""
{NET.replace("max_seq_len=64", "use_abs_pos_emb=False")}
model = SegmentWrapper(net, segment_len=16)
print(model(torch.randint(256, (2, 41))).shape)  # torch.Size([])
""",
    "TransformerWrapper": """
model = TransformerWrapper(num_tokens=256, max_seq_len=64, attn_layers=Decoder(dim=64, depth=2))
ids = torch.randint(256, (2, 16))
print(model(ids).shape)  # torch.Size([2, 16, 256])
""",
    "ViTransformerWrapper": """
model = ViTransformerWrapper(image_size=32, patch_size=8, num_classes=10, attn_layers=Encoder(dim=64, depth=2))
images = torch.randn(2, 3, 32, 32)
print(model(images).shape)  # torch.Size([2, 10])
""",
    "XLAutoregressiveWrapper": """
stack = Decoder(dim=64, depth=2, pos="rotary")
model = XLAutoregressiveWrapper(TransformerWrapper(num_tokens=256, max_seq_len=16, max_mem_len=16, attn_layers=stack))
print(model(torch.randint(256, (2, 41))).shape)  # torch.Size([])
""",
    "XTransformer": """
common = {"num_tokens": 256, "max_seq_len": 64, "depth": 2}
model = XTransformer(dim=64, **{f"{side}_{name}": value for side in ("enc", "dec") for name, value in common.items()})
print(model(torch.randint(256, (2, 16)), torch.randint(256, (2, 9))).shape)  # torch.Size([])
""",
    "XValAutoregressiveWrapper": f"""
net = {XVAL}
model = XValAutoregressiveWrapper(net)
print(model(torch.randint(9, (2, 16)), torch.randn(2, 16)).shape)  # torch.Size([])
""",
    "XValTransformerWrapper": f"""
model = {XVAL}
ids = torch.randint(9, (2, 16))
print(model(ids, torch.randn(2, 16)).logits.shape)  # torch.Size([2, 16, 9])
""",
}
