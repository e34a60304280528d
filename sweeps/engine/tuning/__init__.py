"""How a sweep goes on by its own results: pure functions of what its ledger holds."""
