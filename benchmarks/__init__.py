"""What is claimed of this project's speed, measured: `make bench`."""
