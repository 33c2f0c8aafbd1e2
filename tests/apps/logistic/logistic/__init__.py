"""Logistic regression, federated."""
