"""Devices and processes: this machine, and the other processes of a run."""
