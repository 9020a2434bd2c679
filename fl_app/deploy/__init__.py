"""Real deployments: certificates and keys, and Flower's own programs started with the right words.

Nothing of Flower is done again here: every command prints the plain Flower command that it runs.
"""
