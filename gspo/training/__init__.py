"""The loop and its surroundings. `gspo.train` is the function; this package is how it works."""
