"""What is compared: the study's configuration, its grid of runs, and the record of each. Imports no torch."""
