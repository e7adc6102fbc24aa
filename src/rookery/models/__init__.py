"""The packaged models."""
