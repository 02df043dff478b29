"""Vision towers: frozen teachers of the guidance losses, and the encoder-based baseline's eyes."""
