"""Samplers, and the suggester that asks them for configurations."""
