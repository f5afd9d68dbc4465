"""The training loop that every phase with gradients shares."""
