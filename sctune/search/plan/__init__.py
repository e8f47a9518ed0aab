"""From options to a plan, and what it will cost."""
