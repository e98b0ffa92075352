"""Parts of the encoder benchmarks."""
