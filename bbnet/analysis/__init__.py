"""What it means: the summary of a study's runs, and its statistics. Reads files; knows no task and imports no torch."""
