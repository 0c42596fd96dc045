"""What benchmarks of several families need."""
