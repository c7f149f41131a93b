"""Our kernels against those of the stock library."""
