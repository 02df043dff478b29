"""moving_shapes: a data set of rendered clips of coloured shapes, with captions and questions. `builder` is its TFDS builder."""
