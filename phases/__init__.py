"""The algorithms of the eight phases in plain PyTorch and NumPy. Nothing below this folder imports Ray."""
