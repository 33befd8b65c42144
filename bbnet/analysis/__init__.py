"""Computes the summary of a study's runs and its statistics. It depends on no task and imports no torch."""
