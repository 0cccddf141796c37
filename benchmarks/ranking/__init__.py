"""Compares training objectives: same model, same data, same budget."""
