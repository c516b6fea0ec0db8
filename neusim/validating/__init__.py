"""The simulator against real runs and against published results."""
