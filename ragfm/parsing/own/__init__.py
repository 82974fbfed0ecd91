"""ragfm's own parsers: one module per text format here, the other formats in sub-packages."""
