"""One benchmark a file; each compares with a baseline that it measures in the same run."""
