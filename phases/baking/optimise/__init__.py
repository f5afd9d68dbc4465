"""Making a model fast or small for the machine that it runs on, and keeping only what a measurement has shown."""
