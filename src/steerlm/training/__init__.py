"""One training loop for both models: configuration, data plan, tasks, checkpoints, logs."""
