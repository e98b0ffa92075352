"""Parts of all benchmarks: command lines, records, tables, processes."""
