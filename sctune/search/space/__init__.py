"""Search spaces: parameters, conditions, variants, enumeration."""
