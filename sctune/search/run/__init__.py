"""A launch over a study: driver, Ray adapters, rules, faults, retention, its end."""
