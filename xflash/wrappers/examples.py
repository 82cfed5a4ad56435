"""An example for each wrapper: the lines that build it and call it."""

__all__ = ["EXAMPLES"]

NET = "net = TransformerWrapper(num_tokens=256, max_seq_len=64, attn_layers=Decoder(dim=64, depth=2))"
READER = NET.replace("Decoder", "Encoder")
XVAL = """
stack = Decoder(dim=64, depth=2)
net = XValTransformerWrapper(num_tokens=256, numerical_token_id=255, max_seq_len=64, attn_layers=stack)
""".strip()

EXAMPLES = {
    "AttentionPool": """
model = AttentionPool(dim=64, num_pooled_tokens=4, heads=4, dim_head=16)
print(model(torch.randn(2, 16, 64)).shape)  # torch.Size([2, 4, 64])
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
x = torch.randn(2, 16, 7)
print(model(x, lens=[16, 9]).shape)  # torch.Size([])
print(model.generate(x[:, :3], 8).shape)  # torch.Size([2, 8, 7])
""",
    "ContinuousTransformerWrapper": """
model = ContinuousTransformerWrapper(dim_in=7, dim_out=10, max_seq_len=64, attn_layers=Encoder(dim=64, depth=2))
print(model(torch.randn(2, 16, 7)).shape)  # torch.Size([2, 16, 10])
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
sizes = {"note": 128, "length": 16}
model = MultiInputTransformerWrapper(num_tokens=sizes, max_seq_len=64, attn_layers=Decoder(dim=64, depth=2))
logits = model({name: torch.randint(count, (2, 9)) for name, count in sizes.items()})
print(logits["note"].shape, logits["length"].shape)  # torch.Size([2, 9, 128]) torch.Size([2, 9, 16])
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
{XVAL}
model = XValAutoregressiveWrapper(net)
ids, numbers = torch.randint(256, (2, 16)), torch.randn(2, 16)
print(model(ids, numbers).shape)  # torch.Size([])
made = model.generate(ids[:, :3], numbers[:, :3], 8)
print(made.sampled_numbers.shape)  # torch.Size([2, 8])
""",
    "XValTransformerWrapper": f"""
{XVAL}
logits, numbers = net(torch.randint(256, (2, 16)), torch.randn(2, 16))
print(logits.shape, numbers.shape)  # torch.Size([2, 16, 256]) torch.Size([2, 16])
""",
}
