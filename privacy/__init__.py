"""The numbers behind differential privacy: randomness, noise and accounting. Knows neither strategies nor tasks."""
