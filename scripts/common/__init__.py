"""What the scripts share: command lines, what a run is known by, how a script ends."""
