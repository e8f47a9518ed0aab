"""The family of deviation losses: SaliencyCut, DRA, DevNet and what lies between."""
