"""Tuning a model that is there: adapters, initial states or all of its weights, on talks, texts and preferences."""
