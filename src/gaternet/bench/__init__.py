"""What a run's images need and what it takes: multiply-accumulates, milliseconds, training."""
