"""From logits to tokens: filters, decoding, beams."""
