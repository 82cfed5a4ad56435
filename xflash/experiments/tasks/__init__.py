"""What variants are trained on: each kind of data makes their models, batches, losses and scores."""
