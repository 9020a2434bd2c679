"""The commands of `fl-app` beside run and list, each thin over what it calls."""
