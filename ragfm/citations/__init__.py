"""Citations: whether the passages support an answer, and how confident ragfm is in it."""
