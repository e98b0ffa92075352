"""Parts of the benchmark of planning and preprocessing."""
