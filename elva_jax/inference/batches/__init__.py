"""Many questions in batches: media read once and ahead, rows with shared prefixes, few shapes."""
