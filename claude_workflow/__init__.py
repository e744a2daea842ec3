"""What is installed beside the functions and the stack: the command, and the service on one machine."""

__version__ = "0.2.0"
