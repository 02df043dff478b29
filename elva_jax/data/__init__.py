"""From annotation files to batches: readers, mixtures, decoding, packing, the Grain pipeline."""
