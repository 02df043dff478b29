"""The wordings of questions and prompts in moving_shapes.

They are part of the data set, whose texts are in British English ("colour"); the names of families
and attributes are those of its annotations.
"""

WORDINGS = {
    "colour": ("What colour is {it}?", "Which colour does {it} have?", "Name the colour of {it}."),
    "shape": ("What shape is {it}?", "Which shape does {it} have?", "Name the shape of {it}."),
    "count": ("How many objects are there?", "How many objects can be seen?", "Count the objects."),
    "position": (
        "Where is {it}?",
        "Where can {it} be seen?",
        "In which part of the picture is {it}?",
    ),
    "motion": (
        "Which way does {it} move?",
        "In which direction does {it} move?",
        "Where is {it} heading?",
    ),
    "order appear first": (
        "Which object appears first?",
        "What comes into view first?",
        "Which object is shown first?",
    ),
    "order appear last": (
        "Which object appears last?",
        "What comes into view last?",
        "Which object is shown last?",
    ),
    "order leave first": (
        "Which object disappears first?",
        "What goes out of view first?",
        "Which object is gone first?",
    ),
    "order leave last": (
        "Which object stays longest?",
        "What remains at the end?",
        "Which object is the last to stay?",
    ),
    "change to": (
        "What colour does {it} turn into?",
        "Which colour does {it} have at the end?",
        "What is the new colour of {it}?",
    ),
    "change from": (
        "What colour is {it} at first?",
        "Which colour does {it} have at the start?",
        "What is the old colour of {it}?",
    ),
    "needle": (
        "Which object flashes?",
        "Which object lights up briefly?",
        "What flashes for a moment?",
    ),
    "digit": ("Which digit is shown?", "What digit can be seen?", "Read the digit."),
}
CAPTION_WORDINGS = {
    "object": ("Describe {it}.", "What can you say about {it}?", "Tell me about {it}."),
    "place": ("What is {at}?", "Which object is {at}?", "Name the object {at}."),
}
CAPTION_PROMPTS = (
    "Describe the {media}.",
    "What can be seen in the {media}?",
    "Tell me about the {media}.",
    "Write a caption for the {media}.",
    "Give a full description of the {media}.",
)
