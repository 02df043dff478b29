"""The parts: each module has `run(context, *options)`."""
