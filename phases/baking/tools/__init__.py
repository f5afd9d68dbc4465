"""Tools that a model calls: what they are, how calls are read and scored, and the three that come with the foundry."""
