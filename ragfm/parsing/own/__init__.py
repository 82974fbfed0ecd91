"""ragfm's own parsers, one module per format."""
