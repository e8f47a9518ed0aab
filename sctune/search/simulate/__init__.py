"""Searches on recorded trainings: nothing is trained, the time is simulated."""
