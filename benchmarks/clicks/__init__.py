"""Scores from interaction logs: do they find the truth, when do they not, and what do they cost?"""
