"""One mechanism a file; each is both halves of one step on the update path."""
