"""Phase 6: tools and a persona baked into the weights, the model fitted to its hardware, each claim measured again."""
