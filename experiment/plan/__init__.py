"""What is to be done: the classes, images and backbones that a command line names, as runs, tasks and jobs."""
