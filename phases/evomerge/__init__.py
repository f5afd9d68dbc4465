"""Phase 2, EvoMerge: merge methods as pure functions of tensors, and the engine that applies them to checkpoints."""
