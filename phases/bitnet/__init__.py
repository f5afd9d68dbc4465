"""Phase 4: ternary weights by quantisation-aware training, and the formats that make them small and fast."""
