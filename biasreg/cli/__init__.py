"""One file for each command: declare arguments, call the function, give the exit code."""
