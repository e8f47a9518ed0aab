"""A study at rest: manifest, record, database, lock, locations and what follows from them."""
