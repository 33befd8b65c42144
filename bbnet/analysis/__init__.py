"""Computes the summary of a study's runs and its statistics. Independent of the tasks; does not import torch."""
