"""Training one model, taking it up where it was interrupted, testing it, and leaving its folder."""
