"""The Ray Serve applications: an OpenAI-compatible endpoint over a model directory."""
