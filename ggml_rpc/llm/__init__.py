"""Language models over local and remote devices."""
