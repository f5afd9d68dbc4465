"""Phase 3: thinking before speaking (Quiet-STaR, Zelikman et al. 2024)."""
