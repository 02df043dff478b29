"""moving_shapes: rendered clips of colored shapes, with captions and questions.

    style -> scene: what happens -> render: pixels and files
                                 -> language: captions, questions, options
    records: one record from its number; builder: all of them as a TFDS data set

The texts of the data set are in British English, and so are the names that go with them (colour).
"""
