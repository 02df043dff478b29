"""The sub-commands of `elva` that are faces of the API."""
