"""Shared foundations: errors, units, files, terminals, processes, graphs."""
