"""What the trainer, the sensor and the subscriber agree on. Imports nothing of ours."""
