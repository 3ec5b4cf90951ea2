"""What every room needs of the machine: its device and precision, its memory, and bars on its terminal."""
