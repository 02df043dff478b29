"""`elva generate --input FILE`: a file of questions in, a file of answers out."""
