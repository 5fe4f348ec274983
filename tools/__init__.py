"""What an operator runs: the command line, the inspectors, the benchmarks."""
