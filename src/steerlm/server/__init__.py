"""The HTTP server: generation, steering and scoring for many clients."""
