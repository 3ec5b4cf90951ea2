"""Several tasks at once, on devices and machines, by Ray."""
