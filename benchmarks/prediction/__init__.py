"""Parts of the prediction benchmarks."""
