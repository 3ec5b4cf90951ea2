"""Runs of detectors: planned, done here or on workers, recorded and shown; and what was trained, used."""
