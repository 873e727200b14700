"""What every part needs: errors, units, files, terminals, processes, graphs."""
