"""Corpora: text in, packed token streams with a deterministic order out."""
