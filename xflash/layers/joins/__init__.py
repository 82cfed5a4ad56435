"""How what a block gives joins the stream, by name."""
