"""What every command stands on: starting, errors, devices, files that survive a crash."""
