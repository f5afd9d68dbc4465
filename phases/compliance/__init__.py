"""The Power-of-Ten rules (Holzmann 2006), adapted to Python and checked statically."""
