"""Devices and processes: what this machine has, and who runs beside this process."""
