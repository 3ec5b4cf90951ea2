"""Trained models as a service on this machine: a page to look at images with, and its interface for programs."""
