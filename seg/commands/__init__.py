"""The functions behind the commands: read, compute, print, and write."""
