"""Runs of detectors: what is to be done, doing it here or on workers, recording and showing it, using what was trained.

A run is a configuration and its folder, a task what one model is trained for, a job a class, backbone and seed.
"""
