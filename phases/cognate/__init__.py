"""Phase 1: three TinyTitan models with adaptive computation time and a long-term memory."""
