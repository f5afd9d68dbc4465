"""Phase 2: merge methods as pure functions of tensors."""
