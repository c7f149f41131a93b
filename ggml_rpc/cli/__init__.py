"""Command lines: argument parsing and printing, nothing else."""
